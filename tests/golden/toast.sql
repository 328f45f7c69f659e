-- TOASTed values that an update leaves alone, changes, or sets to NULL: DEFAULT and FULL.
CREATE TABLE d (id int PRIMARY KEY, n int, doc text);
CREATE TABLE f (id int PRIMARY KEY, n int, doc text);
ALTER TABLE d ALTER doc SET STORAGE EXTERNAL;
ALTER TABLE f ALTER doc SET STORAGE EXTERNAL;
ALTER TABLE f REPLICA IDENTITY FULL;
CREATE PUBLICATION golden FOR ALL TABLES;
INSERT INTO d VALUES (1, 1, repeat('ab', 1050));
INSERT INTO f VALUES (1, 1, repeat('cd', 1050));
UPDATE d SET n = 2;             -- unchanged, no old tuple
UPDATE f SET n = 2;             -- old tuple has the value, the new one still says unchanged
UPDATE d SET id = 3;            -- key change with an unchanged value
UPDATE f SET id = 3;
UPDATE d SET doc = 'short';
UPDATE f SET doc = 'short';
UPDATE d SET doc = NULL;
UPDATE f SET doc = NULL;
DELETE FROM d;
DELETE FROM f;
