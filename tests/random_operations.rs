//! Thousands of random statements, DML and DDL, while huella is killed, asked for copies and configured anew; equal in the end.
//!
//! A seed gives the same statements each time; they are printed when a run fails. `HUELLA_SEEDS=1,2,3` chooses others than the few of
//! the default, `HUELLA_STEPS` how many steps each has.

#![allow(clippy::unwrap_used)] // a broken test may panic

mod lake_reader;
mod private_server;
mod world;

use std::fmt::Write;
use tokio_postgres::Client;
use world::{Running, World};

const SEEDS: &str = "1,2";
const STEPS: usize = 250;

/// SplitMix64: small, and the same everywhere.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, below: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        ((z ^ (z >> 31)) % below as u64) as usize
    }

    fn chance(&mut self, percent: usize) -> bool {
        self.roll(100) < percent
    }

    fn pick<'a, T>(&mut self, list: &'a [T]) -> &'a T {
        &list[self.roll(list.len())]
    }
}

#[derive(Clone)]
struct Column {
    name: String,
    kind: &'static str,
}

#[derive(Clone)]
struct Table {
    name: String,
    key: &'static [&'static str],
    partitioned: bool,
    columns: Vec<Column>,
}

const KINDS: &[&str] =
    &["int", "bigint", "text", "numeric", "numeric(12,2)", "timestamptz", "bool", "jsonb", "text[]", "bytea", "float8", "varchar(40)"];

/// An expression for a random value of a type; row number `i` is in scope.
fn value(dice: &mut Dice, kind: &str) -> String {
    if dice.chance(10) {
        return "NULL".to_owned();
    }
    let n = dice.roll(1000);
    match kind {
        "int" | "bigint" => format!("(i * 7919 + {n}) % 100000"),
        "text" if dice.chance(15) => format!("(SELECT string_agg(md5((i + g)::text), '') FROM generate_series({n}, {n} + 200) g)"),
        "text" | "varchar(40)" => (*dice.pick(&["'ñ\t\\x' || i", "''", "'null'", "md5(i::text)", "'\"' || i", "E'a\\nb'"])).to_owned(),
        "numeric" => (*dice.pick(&["i / 7.0", "'NaN'", "1e30 + i", "-0.000000001", "123456789012345678901234567890.5"])).to_owned(),
        "numeric(12,2)" => format!("{n}.25 + i"),
        "timestamptz" => (*dice.pick(&["now()", "'infinity'", "'2020-02-29 01:02:03.456789+00'", "'0044-03-15 BC'"])).to_owned(),
        "bool" => (*dice.pick(&["true", "false"])).to_owned(),
        "jsonb" if dice.chance(20) => {
            "jsonb_build_object('x', (SELECT string_agg(md5((i + g)::text), '') FROM generate_series(1, 300) g))".to_owned()
        }
        "jsonb" => format!("'{{\"a\": [{n}, null], \"b\": \"ü\"}}'"),
        "text[]" => (*dice.pick(&["'{}'", "ARRAY['a,b', NULL, '\"']", "'{{1,2},{3,4}}'"])).to_owned(),
        "bytea" => (*dice.pick(&["'\\x00ff'", "''", "decode(md5(i::text), 'hex')"])).to_owned(),
        "float8" => (*dice.pick(&["'NaN'", "'-Infinity'", "i / 3.0", "'-0'"])).to_owned(),
        other => panic!("no value for {other}"),
    }
}

struct Source {
    dice: Dice,
    tables: Vec<Table>,
    /// Counts names up, so that none comes twice by chance.
    next: usize,
    script: String,
    failed: usize,
    done: usize,
}

impl Source {
    async fn run(&mut self, client: &Client, sql: &str) -> bool {
        writeln!(self.script, "{sql};").unwrap();
        self.done += 1;
        match client.batch_execute(sql).await {
            Ok(()) => true,
            Err(error) => {
                let said = error.as_db_error().map_or_else(|| error.to_string(), |e| e.message().to_owned());
                writeln!(self.script, "-- refused: {said}").unwrap();
                self.failed += 1;
                let _ = client.batch_execute("ROLLBACK").await;
                false
            }
        }
    }

    fn name(&mut self, prefix: &str) -> String {
        self.next += 1;
        format!("{prefix}{}", self.next)
    }

    async fn create(&mut self, client: &Client) {
        let name = self.name("t");
        let (key, identity, partitioned): (&[&str], &str, bool) = match self.dice.roll(5) {
            0 => (&["id"], "", false),
            1 => (&["b", "id"], "", false),
            2 => (&[], "REPLICA IDENTITY FULL", false),
            3 => (&["id"], "REPLICA IDENTITY FULL", false),
            _ => (&["id"], "", true),
        };
        let mut columns = vec![Column { name: "id".to_owned(), kind: "int" }, Column { name: "b".to_owned(), kind: "int" }];
        for _ in 0..self.dice.roll(5) {
            let (name, kind) = (self.name("c"), *self.dice.pick(KINDS));
            columns.push(Column { name, kind });
        }
        let list: Vec<String> = columns.iter().map(|c| format!("{} {}", c.name, c.kind)).collect();
        let primary = if key.is_empty() { String::new() } else { format!(", PRIMARY KEY ({})", key.join(", ")) };
        let partition = if partitioned { " PARTITION BY HASH (id)" } else { "" };
        let mut sql = format!("CREATE TABLE {name} ({}{primary}){partition}", list.join(", "));
        if partitioned {
            write!(sql, "; CREATE TABLE {name}_0 PARTITION OF {name} FOR VALUES WITH (MODULUS 2, REMAINDER 0)").unwrap();
            write!(sql, "; CREATE TABLE {name}_1 PARTITION OF {name} FOR VALUES WITH (MODULUS 2, REMAINDER 1)").unwrap();
        }
        if !identity.is_empty() {
            write!(sql, "; ALTER TABLE {name} {identity}").unwrap();
        }
        if self.run(client, &sql).await {
            self.tables.push(Table { name, key, partitioned, columns });
        }
    }

    /// One statement that changes rows of `table`.
    fn dml(&mut self, table: &Table) -> String {
        let (name, dice) = (&table.name, &mut self.dice);
        let some = format!("id % {} = {}", 2 + dice.roll(20), dice.roll(3));
        match dice.roll(20) {
            0..=7 => {
                self.next += 1;
                let from = self.next * 100;
                let columns: Vec<&str> = table.columns.iter().map(|c| c.name.as_str()).collect();
                let values: Vec<String> = table
                    .columns
                    .iter()
                    .map(|c| if c.name == "id" || c.name == "b" { "i".to_owned() } else { value(dice, c.kind) })
                    .collect();
                format!(
                    "INSERT INTO {name} ({}) SELECT {} FROM generate_series({from}, {from} + {}) i",
                    columns.join(", "),
                    values.join(", "),
                    dice.roll(60)
                )
            }
            8..=13 => {
                let others: Vec<&Column> = table.columns.iter().filter(|c| !table.key.contains(&c.name.as_str())).collect();
                let Some(column) = (!others.is_empty()).then(|| (*dice.pick(&others)).clone()) else {
                    return format!("DELETE FROM {name} WHERE {some}");
                };
                format!(
                    "UPDATE {name} SET {} = v.v FROM (SELECT i, {} AS v FROM generate_series(1, 1) i) v WHERE {some}",
                    column.name,
                    typed(value(dice, column.kind), column.kind)
                )
            }
            14..=15 => format!("UPDATE {name} SET id = id + {} WHERE {some}", 1_000_000 + dice.roll(50)),
            16..=18 => format!("DELETE FROM {name} WHERE {some}"),
            _ if dice.chance(50) => format!("TRUNCATE {name}"),
            _ => format!("DELETE FROM {name} WHERE {some}"),
        }
    }

    async fn ddl(&mut self, client: &Client) {
        let at = self.dice.roll(self.tables.len());
        let table = self.tables[at].clone();
        let name = &table.name;
        let free: Vec<usize> = (0..table.columns.len()).filter(|i| !["id", "b"].contains(&table.columns[*i].name.as_str())).collect();
        let kind = *self.dice.pick(KINDS);
        match self.dice.roll(16) {
            0..=2 => {
                let column = self.name("c");
                let default = match self.dice.roll(4) {
                    0 if kind == "text" => " DEFAULT md5(random()::text)",
                    1 if kind == "text" => " DEFAULT 'dado'",
                    0 if kind == "timestamptz" => " DEFAULT clock_timestamp()",
                    1 if kind == "int" => " DEFAULT 42",
                    _ => "",
                };
                if self.run(client, &format!("ALTER TABLE {name} ADD {column} {kind}{default}")).await {
                    self.tables[at].columns.push(Column { name: column, kind });
                }
            }
            3 | 4 if !free.is_empty() => {
                let gone = *self.dice.pick(&free);
                if self.run(client, &format!("ALTER TABLE {name} DROP {}", table.columns[gone].name)).await {
                    self.tables[at].columns.remove(gone);
                }
            }
            5 if !free.is_empty() => {
                let (column, new) = (*self.dice.pick(&free), self.name("r"));
                if self.run(client, &format!("ALTER TABLE {name} RENAME {} TO {new}", table.columns[column].name)).await {
                    self.tables[at].columns[column].name = new;
                }
            }
            6 | 7 if !free.is_empty() => {
                let column = *self.dice.pick(&free);
                let c = &table.columns[column];
                let (new, using) = match c.kind {
                    "int" if self.dice.chance(50) => ("bigint", format!("{} * 2", c.name)),
                    "int" => ("bigint", c.name.clone()),
                    "bigint" => ("bigint", format!("{} + 1", c.name)),
                    _ => ("text", format!("{}::text", c.name)),
                };
                if self.run(client, &format!("ALTER TABLE {name} ALTER {} TYPE {new} USING {using}", c.name)).await {
                    self.tables[at].columns[column].kind = new;
                }
            }
            8 if !table.key.is_empty() && !table.partitioned => {
                let identity = *self.dice.pick(&["FULL", "DEFAULT"]);
                self.run(client, &format!("ALTER TABLE {name} REPLICA IDENTITY {identity}")).await;
            }
            9 => {
                self.run(client, &format!("VACUUM FULL {name}")).await;
            }
            10 if self.tables.len() > 3 => {
                if self.run(client, &format!("DROP TABLE {name}")).await {
                    self.tables.remove(at);
                }
            }
            11 if table.partitioned => {
                self.run(client, &format!("TRUNCATE {name}_{}", self.dice.0 % 2)).await;
            }
            12 if table.partitioned => {
                self.run(client, &format!("ALTER TABLE {name} DETACH PARTITION {name}_0")).await;
                let back = format!("ALTER TABLE {name} ATTACH PARTITION {name}_0 FOR VALUES WITH (MODULUS 2, REMAINDER 0)");
                self.run(client, &back).await;
            }
            13 => {
                self.run(client, &format!("ALTER PUBLICATION huella DROP TABLE {name}")).await;
                let dml = self.dml(&table);
                self.run(client, &dml).await; // not published
            }
            14 if self.tables.len() < 7 => self.create(client).await,
            _ => {
                let new = self.name("t");
                if !table.partitioned && self.run(client, &format!("ALTER TABLE {name} RENAME TO {new}")).await {
                    self.tables[at].name = new;
                }
            }
        }
    }

    /// One step at the source: a statement, or a transaction of several with DDL between them.
    async fn step(&mut self, client: &Client) {
        if self.dice.chance(12) {
            return self.ddl(client).await;
        }
        let mut sql = Vec::new();
        for _ in 0..=(if self.dice.chance(30) { self.dice.roll(8) } else { 0 }) {
            let table = self.dice.pick(&self.tables).clone();
            sql.push(self.dml(&table));
        }
        let end = if self.dice.chance(10) { "ROLLBACK" } else { "COMMIT" };
        let sql = if sql.len() == 1 { sql.remove(0) } else { format!("BEGIN; {}; {end}", sql.join("; ")) };
        self.run(client, &sql).await;
    }
}

fn typed(value: String, kind: &str) -> String {
    format!("({value})::{kind}")
}

/// Something that happens to huella.
fn disturb(w: &World, source: &mut Source, run: Running) -> Running {
    match source.dice.roll(10) {
        0..=4 => {
            writeln!(source.script, "-- SIGKILL").unwrap();
            drop(run);
        }
        5 | 6 => {
            writeln!(source.script, "-- SIGTERM").unwrap();
            run.signal(libc::SIGTERM);
            run.wait();
        }
        7 | 8 => {
            let name = format!("public.{}", source.dice.pick(&source.tables).name);
            writeln!(source.script, "-- huella snapshot {name}").unwrap();
            // The table may be changing its shape, or not be there yet: refused, and nothing else.
            let (code, _) = w.run(&["snapshot", &name]);
            assert!([0, 1, 2, 4].contains(&code), "snapshot ended with {code}");
            return run;
        }
        _ => {
            writeln!(source.script, "-- SIGKILL, then --resnapshot").unwrap();
            drop(run);
            return w.start(&["run", "--resnapshot"], &[]);
        }
    }
    w.start(&["run"], &[])
}

async fn history(seed: u64, steps: usize) {
    let w = World::new().await;
    let mut source = Source { dice: Dice(seed), tables: Vec::new(), next: 0, script: String::new(), failed: 0, done: 0 };
    for _ in 0..4 {
        source.create(&w.client).await;
    }
    let mut run = w.start(&["run"], &[]);
    let report = Report { script: std::cell::RefCell::new(String::new()), seed };
    for step in 0..steps {
        source.step(&w.client).await;
        report.script.replace(source.script.clone());
        if source.dice.chance(4) {
            run = disturb(&w, &mut source, run);
        }
        if step % 80 == 79 {
            run = settled(&w, run).await;
        }
    }
    run = settled(&w, run).await;
    run.stop();
    assert!(source.failed * 4 < source.done, "too many statements were refused: {} of {}", source.failed, source.done);
}

/// Everything is in the lake, and equal.
async fn settled(w: &World, mut run: Running) -> Running {
    if run.ended() {
        panic!("huella ended by itself\n{}", w.log());
    }
    // A table dropped from the publication is added again at a heartbeat, and a shape without rows is seen at one: after two beats
    // nothing is left to be noticed.
    for _ in 0..2 {
        w.caught_up().await;
        tokio::time::sleep(std::time::Duration::from_millis(1200)).await;
    }
    w.caught_up().await;
    w.true_in_the_lake().await;
    run
}

/// Prints what was done if the test fails.
struct Report {
    script: std::cell::RefCell<String>,
    seed: u64,
}

impl Drop for Report {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("seed {}:\n{}", self.seed, self.script.borrow());
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn random_histories_with_random_trouble_end_equal() {
    let seeds = std::env::var("HUELLA_SEEDS").unwrap_or_else(|_| SEEDS.to_owned());
    let steps = std::env::var("HUELLA_STEPS").ok().and_then(|text| text.parse().ok()).unwrap_or(STEPS);
    for seed in seeds.split(',') {
        eprintln!("seed {seed}");
        history(seed.trim().parse().unwrap(), steps).await;
    }
}
