-- Insert, update, delete; NULL and empty text; key changes; several changes in one transaction; rollback and savepoints.
CREATE TABLE item (id int PRIMARY KEY, name text, price numeric(10,2));
CREATE TABLE line (amount int, "order" int, item int, PRIMARY KEY (item, "order")); -- key in another order than the columns
CREATE PUBLICATION golden FOR ALL TABLES;
INSERT INTO item VALUES (1, 'one', 1.50), (2, '', NULL), (3, NULL, 0);
UPDATE item SET price = 2 WHERE id = 1;
UPDATE item SET id = id WHERE id = 1;         -- same key: no old tuple
UPDATE item SET id = 10 WHERE id = 1;         -- another key: the old one comes along, NULL elsewhere
DELETE FROM item WHERE id = 2;
BEGIN;
INSERT INTO line VALUES (5, 1, 3), (6, 2, 3);
UPDATE line SET "order" = 9 WHERE "order" = 2;
DELETE FROM line WHERE "order" = 1;
INSERT INTO line VALUES (7, 1, 3);
SAVEPOINT s;
INSERT INTO item VALUES (99, 'rolled back', 99);
ROLLBACK TO s;
INSERT INTO item VALUES (4, E'tab\tnewline\nbackslash\\ quote'' emoji 🐾', -1);
COMMIT;
BEGIN;
INSERT INTO item VALUES (100, 'never', 1);
ROLLBACK;
CREATE TABLE nothing (id int PRIMARY KEY);    -- DDL alone: no message
DELETE FROM item;
