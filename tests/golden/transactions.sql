-- options: 'messages', 'true'
-- Origins, logical messages in and outside a transaction, several rows in one statement.
CREATE TABLE t (id int PRIMARY KEY);
CREATE PUBLICATION golden FOR ALL TABLES;
SELECT pg_logical_emit_message(false, 'outside', 'hello');
BEGIN;
SELECT pg_logical_emit_message(true, 'inside', E'\\x00ff'::bytea);
INSERT INTO t VALUES (1);
SELECT pg_logical_emit_message(true, '', '');
COMMIT;
SELECT pg_replication_origin_create('elsewhere');
SELECT pg_replication_origin_session_setup('elsewhere');
BEGIN;
SELECT pg_replication_origin_xact_setup('0/ABCDEF', '2024-01-01 00:00:00+00');
INSERT INTO t VALUES (2);
COMMIT;
SELECT pg_replication_origin_session_reset();
BEGIN;
INSERT INTO t SELECT generate_series(3, 6);
COMMIT;
