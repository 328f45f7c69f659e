-- Text output of many types, with values at the edges.
\ir types.inc
