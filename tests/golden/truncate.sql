-- TRUNCATE: one table, two in a statement, CASCADE, RESTART IDENTITY, and rows before and after in one transaction.
CREATE TABLE parent (id int PRIMARY KEY);
CREATE TABLE child (id int PRIMARY KEY, parent int REFERENCES parent);
CREATE TABLE other (id serial PRIMARY KEY);
CREATE PUBLICATION golden FOR ALL TABLES;
TRUNCATE other;
TRUNCATE child, other RESTART IDENTITY;
TRUNCATE parent CASCADE;
BEGIN;
INSERT INTO other DEFAULT VALUES;
TRUNCATE other;
INSERT INTO other DEFAULT VALUES;
COMMIT;
TRUNCATE parent, child, other RESTART IDENTITY CASCADE;
