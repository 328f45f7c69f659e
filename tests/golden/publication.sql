-- Column lists, row filters (leaving is a delete, entering an insert), partitions under their root.
CREATE TABLE narrow (id int PRIMARY KEY, open text, secret text);
CREATE TABLE filtered (id int PRIMARY KEY, n int);
ALTER TABLE filtered REPLICA IDENTITY FULL;
CREATE TABLE root (id int PRIMARY KEY, n int) PARTITION BY RANGE (id);
CREATE TABLE leaf_low PARTITION OF root FOR VALUES FROM (0) TO (100);
CREATE TABLE leaf_high PARTITION OF root FOR VALUES FROM (100) TO (200);
CREATE PUBLICATION golden FOR TABLE narrow (open, id), filtered WHERE (n > 10), root WITH (publish_via_partition_root = true);
INSERT INTO narrow VALUES (1, 'a', 'hidden');
UPDATE narrow SET secret = 'still hidden';
DELETE FROM narrow;
INSERT INTO filtered VALUES (1, 5), (2, 15);
UPDATE filtered SET n = 20 WHERE id = 1;
UPDATE filtered SET n = 16 WHERE id = 2;
UPDATE filtered SET n = 1 WHERE id = 2;
DELETE FROM filtered;
INSERT INTO root VALUES (1, 1), (101, 2);
UPDATE root SET id = 102 WHERE id = 1;  -- into another leaf
TRUNCATE leaf_low;
TRUNCATE root;
