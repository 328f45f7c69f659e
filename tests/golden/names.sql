-- Names with spaces, quotes, dots, capitals, non-ASCII letters, and of the greatest length.
CREATE SCHEMA "Año. ""x""";
CREATE TABLE "Año. ""x"""."T a.b" ("Id key" int PRIMARY KEY, "ñandú🐾" text, "sel""ect" int);
CREATE TABLE public.aaaaaaaaaabbbbbbbbbbccccccccccddddddddddeeeeeeeeeeffffffffffggg (" " int PRIMARY KEY);
CREATE PUBLICATION golden FOR ALL TABLES;
INSERT INTO "Año. ""x"""."T a.b" VALUES (1, 'é', 2);
INSERT INTO public.aaaaaaaaaabbbbbbbbbbccccccccccddddddddddeeeeeeeeeeffffffffffggg VALUES (1);
