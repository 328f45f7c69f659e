-- options: 'binary', 'true'
\ir types.inc
