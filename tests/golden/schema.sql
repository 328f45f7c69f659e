-- The relation is sent again when its shape changed, before the next row, also inside a transaction.
CREATE TABLE t (id int PRIMARY KEY, a int, b text);
CREATE PUBLICATION golden FOR ALL TABLES;
INSERT INTO t VALUES (1, 1, 'one');
ALTER TABLE t ADD c varchar(9) DEFAULT 'new';
INSERT INTO t VALUES (2, 2, 'two');
ALTER TABLE t DROP b;
UPDATE t SET a = 3 WHERE id = 2;
BEGIN;
ALTER TABLE t RENAME a TO "A";
ALTER TABLE t ALTER "A" TYPE bigint;
INSERT INTO t VALUES (3, 1099511627776, NULL);
ALTER TABLE t RENAME TO t2;
DELETE FROM t2 WHERE id = 3;
COMMIT;
ALTER TABLE t2 SET SCHEMA pg_catalog;   -- no place for a table, but it makes the wire say "" for the schema
INSERT INTO pg_catalog.t2 VALUES (4, 4, NULL);
