-- Replica identities other than the primary key.
CREATE TABLE keyless (a int, b text);
ALTER TABLE keyless REPLICA IDENTITY FULL;
CREATE TABLE by_index (id int PRIMARY KEY, code text NOT NULL UNIQUE, n int);
ALTER TABLE by_index REPLICA IDENTITY USING INDEX by_index_code_key;
CREATE TABLE none (id int PRIMARY KEY);
ALTER TABLE none REPLICA IDENTITY NOTHING;
CREATE TABLE no_columns ();
CREATE PUBLICATION golden FOR ALL TABLES;
INSERT INTO keyless VALUES (1, 'x'), (1, 'x'), (NULL, NULL);
UPDATE keyless SET b = 'y' WHERE a = 1;
DELETE FROM keyless;
INSERT INTO by_index VALUES (1, 'a', 1);
UPDATE by_index SET n = 2;
UPDATE by_index SET id = 2;      -- not the identity: no old tuple
UPDATE by_index SET code = 'b';
DELETE FROM by_index;
INSERT INTO none VALUES (1);
INSERT INTO no_columns DEFAULT VALUES;
ALTER TABLE by_index REPLICA IDENTITY DEFAULT;
INSERT INTO by_index VALUES (3, 'c', 3);
