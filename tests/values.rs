//! The values that a real PostgreSQL prints become the cells that the contract promises.
//!
//! Every value is read twice: as the text that a pinned session prints, which goes through the conversion, and as a second
//! text that the server computes another way (bits of floats, epochs, hex, `to_json`), which the cell must equal. Which
//! values fit is computed by the server, too.

// Helpers beside the tests may unwrap as the tests do.
#![allow(clippy::unwrap_used)]

#[path = "private_server/programs.rs"]
mod programs;
#[path = "edges/stamps.rs"]
mod stamps;

use arrow_array::cast::AsArray;
use arrow_array::types::{Date32Type, Decimal128Type, Decimal256Type, Float32Type, Float64Type, Int64Type, TimestampMicrosecondType};
use arrow_array::{Array, ArrayRef};
use huella::schema::{ColumnBuilder, Conversion, Element, LakeType, PgType, conversion, exception_text};
use programs::bin_dir;
use stamps::STAMPS;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use tokio_postgres::{Client, NoTls, SimpleQueryMessage};

/// What the contract pins in every session.
const PINNED: &str = "SET client_encoding = 'UTF8'; SET search_path = ''; SET DateStyle = 'ISO'; SET IntervalStyle = 'postgres'; \
    SET TimeZone = 'UTC'; SET extra_float_digits = 3; SET bytea_output = 'hex'; SET lc_monetary = 'C'";

/// The user and group that the server runs as if the tests are run by root, whom it refuses.
const NOBODY: u32 = 65_534;

/// A private server on a socket in a directory of its own; gone with the value.
struct Server {
    directory: tempfile::TempDir,
    program: Child,
}

impl Server {
    /// `None` if no server program is installed.
    fn start() -> Option<Self> {
        let programs = bin_dir()?;
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path();
        fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
        let as_root = path.metadata().unwrap().uid() == 0;
        if as_root {
            chown(path, Some(NOBODY), Some(NOBODY)).unwrap();
        }
        let command = |program: &str| {
            let program = programs.join(program);
            if !as_root {
                return Command::new(program);
            }
            let mut command = Command::new("setpriv");
            command.args([&format!("--reuid={NOBODY}"), &format!("--regid={NOBODY}"), "--clear-groups"]).arg(program);
            command
        };
        let data = path.join("data");
        let log = fs::File::create(path.join("log")).unwrap();
        let made = command("initdb")
            .arg("-D")
            .arg(&data)
            .args(["-U", "postgres", "-A", "trust", "-E", "UTF8", "--locale=C", "--no-sync"])
            .stdout(log.try_clone().unwrap())
            .stderr(log.try_clone().unwrap())
            .status()
            .unwrap();
        assert!(made.success(), "initdb failed: {}", read(path));
        let program = command("postgres")
            .arg("-D")
            .arg(&data)
            .arg("-k")
            .arg(path)
            .args(["-c", "listen_addresses=", "-c", "fsync=off"])
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        Some(Self { directory, program })
    }

    async fn connect(&mut self) -> Client {
        let deadline = Instant::now() + Duration::from_secs(30);
        loop {
            let mut config = tokio_postgres::Config::new();
            config.host_path(self.directory.path()).user("postgres").dbname("postgres");
            match config.connect(NoTls).await {
                Ok((client, connection)) => {
                    tokio::spawn(connection);
                    return client;
                }
                Err(error) => {
                    let gone = self.program.try_wait().unwrap().is_some();
                    assert!(!gone && Instant::now() < deadline, "no server: {error}; {}", read(self.directory.path()));
                }
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // SIGQUIT: an immediate shutdown, in which the server still ends its children and frees its shared memory.
        let _ = Command::new("kill").args(["-QUIT", &self.program.id().to_string()]).status();
        let _ = self.program.wait();
    }
}

fn read(directory: &Path) -> String {
    fs::read_to_string(directory.join("log")).unwrap_or_default()
}

/// Rows of a query as text, NULL as `None`.
async fn rows(client: &Client, sql: &str) -> Vec<Vec<Option<String>>> {
    let messages = client.simple_query(sql).await.unwrap_or_else(|error| panic!("{sql}: {error:?}"));
    let row = |message| match message {
        SimpleQueryMessage::Row(row) => Some((0..row.len()).map(|n| row.get(n).map(str::to_owned)).collect()),
        _ => None,
    };
    messages.into_iter().filter_map(row).collect()
}

/// A type, the lake type it must get, and values of it as SQL text.
struct Case {
    name: String,
    lake: LakeType,
    values: Vec<String>,
}

fn case(name: &str, lake: LakeType, values: &[&str]) -> Case {
    Case { name: name.to_owned(), lake, values: values.iter().map(|v| (*v).to_owned()).collect() }
}

fn scalars() -> Vec<Case> {
    use LakeType::*;
    let floats = ["0", "-0", "1", "0.1", "1e20", "1e-5", "123456.789", "1e15", "1e16", "NaN", "Infinity", "-Infinity"];
    let float4 = [&floats[..], &["3.4028235e38", "1.17549435e-38", "1e-45", "16777217"]].concat();
    let float8 =
        [&floats[..], &["1.7976931348623157e308", "5e-324", "2.2250738585072014e-308", "0.30000000000000004", "9007199254740993"]].concat();
    let ten29 = format!("1{}", "0".repeat(29));
    let nines = format!("{}.999999999", "9".repeat(29));
    let (minus_ten29, minus_nines) = (format!("-{ten29}"), format!("-{nines}"));
    let ten28 = format!("1{}", "0".repeat(28));
    let numerics = [
        "0",
        "0.0",
        "-1",
        "1.5000000000000000",
        "0.000000001",
        "-0.000000001",
        "0.0000000001",
        "1.5000000000001",
        &ten28,
        &ten29,
        &minus_ten29,
        &nines,
        &minus_nines,
        "1e100",
        "12345678901234567890.123456789",
        "NaN",
        "Infinity",
        "-Infinity",
        "00012.50",
    ];
    let wide = format!("{0}.{0}", "9".repeat(38));
    let minus_wide = format!("-{wide}");
    let tiny = format!("0.{}1", "0".repeat(37));
    let zoned: Vec<_> = STAMPS
        .iter()
        .map(|s| s.strip_suffix(" BC").map_or(format!("{s}+00"), |s| format!("{s}+00 BC")))
        .map(|s| s.replace("infinity+00", "infinity"))
        .collect();
    let mut zoned: Vec<&str> = zoned.iter().map(|z| z.as_str()).collect();
    zoned.extend([
        "9999-12-31 23:59:59-01",
        "0001-01-01 00:00:00+01",
        "2024-07-01 12:00:00 America/Santiago",
        "1890-01-01 00:00:00 America/Santiago",
    ]);
    let text = ["", " ", "NULL", "\\N", "a\tb\nc\r\\d\"e'", "añ 😀", "\u{1}\u{7f}", "{a}"];
    vec![
        case("bool", Boolean, &["t", "f"]),
        case("int2", Int64, &["0", "-32768", "32767"]),
        case("int4", Int64, &["-2147483648", "2147483647"]),
        case("int8", Int64, &["-9223372036854775808", "9223372036854775807", "-1", "1099511627776"]),
        case("oid", Int64, &["0", "4294967295"]),
        case("float4", Float, &float4),
        case("float8", Double, &float8),
        case("numeric", Decimal38_9, &numerics),
        case("numeric(38,9)", Decimal38_9, &["0", &nines, &minus_nines, "1.5", "NaN"]),
        case("numeric(10,2)", Decimal38_9, &["99999999.99", "-99999999.99", "0.01", "NaN"]),
        case("numeric(38,10)", Decimal76_38, &["0.0000000001", "-9999999999999999999999999999.9999999999", "NaN"]),
        case("numeric(76,38)", Decimal76_38, &[&wide, &minus_wide, &tiny, "0", "-1.5", "12345678901234567890.12345678901234567890", "NaN"]),
        case("numeric(100,50)", String, &["1.5", "NaN", "-12345678901234567890123456789012345678901234567890"]),
        case("text", String, &text),
        case("varchar(20)", String, &text),
        case("char(5)", String, &["", "a", "añ", "12345"]),
        case("name", String, &["", "añ b"]),
        case("\"char\"", String, &["", "a"]),
        case("public.mood", String, &["sad", "so, so", "\"ok\""]),
        case("public.pair", String, &["(1,\"a \"\"b\"\"\")", "(,)"]),
        case("public.short", String, &["abc"]),
        case("uuid", String, &["00000000-0000-0000-0000-000000000000", "ffffffff-ffff-ffff-ffff-ffffffffffff"]),
        case("json", String, &["null", "{ \"a\" : 1,\n \"a\":123456789012345678901234567890.10}", "\"\\u00f1\""]),
        case("jsonb", String, &["null", "{\"b\": 1, \"a\": 123456789012345678901234567890.10}"]),
        case("bytea", Binary, &["", "\\x00ff10", "\\000\\\\abc", "\\xdeadbeef"]),
        case(
            "date",
            Date,
            &[
                "0001-01-01",
                "0001-01-01 BC",
                "0001-12-31 BC",
                "9999-12-31",
                "10000-01-01",
                "5874897-12-31",
                "2000-02-29",
                "1970-01-01",
                "1969-12-31",
                "infinity",
                "-infinity",
            ],
        ),
        case("timestamp", DateTime, &STAMPS),
        case("timestamptz", Timestamp, &zoned),
        case("timestamptz(3)", Timestamp, &["2024-01-01 00:00:00.1239+00"]),
        case("time", String, &["00:00:00", "24:00:00", "23:59:59.999999"]),
        case("timetz", String, &["24:00:00-15:59", "00:00:00+05:30"]),
        case("interval", String, &["-1 year 2 mons -3 days +04:05:06.7", "0", "178000000 years"]),
        case("money", String, &["-92233720368547758.08", "1.5"]),
        case("inet", String, &["10.0.0.1/8", "::1"]),
        case("macaddr", String, &["08:00:2b:01:02:03"]),
        case("bit(5)", String, &["10101"]),
        case("varbit", String, &["", "1"]),
        case("point", String, &["(1.5,-0)"]),
        case("box", String, &["(1,1),(0,0)"]),
        case("int4range", String, &["empty", "[1,)", "(,)"]),
        case("int2vector", String, &["", "1 2"]),
        case("oidvector", String, &["1 4294967295"]),
        case("tsvector", String, &["'a':1A 'it''s':2"]),
        case("pg_lsn", String, &["0/16B3748"]),
        case("xml", String, &["<a>ñ</a>"]),
    ]
}

fn arrays() -> Vec<Case> {
    let array = |name: &str, values: &[&str]| case(name, LakeType::String, values);
    let text = [
        "{}",
        "{NULL}",
        "{\"NULL\",null,NULL}",
        "{\"\"}",
        "{a,\"b c\",\"d,e\",\"{f}\",\"g\\\"h\\\\i\"}",
        "{{a,NULL},{\"}\",\";\"}}",
        "[0:1]={a,b}",
        "[1:1][2:2]={{a}}",
        "{{{{{{x}}}}}}",
        "{\"\t\n\r\u{1}\",añ,😀}",
    ];
    vec![
        array("bool[]", &["{t,f,NULL}", "{{t},{f}}", "{}"]),
        array("int2[]", &["{-32768,32767}"]),
        array("int4[]", &["{1,2,NULL}", "{{1,2},{3,4}}", "[2:3]={1,2}", "[-1:-1][1:1]={{1}}", "{}"]),
        array("int8[]", &["{9223372036854775807,-9223372036854775808}"]),
        array("float4[]", &["{NaN,Infinity,-Infinity,-0,0.1,3.4028235e38}"]),
        array("float8[]", &["{NaN,Infinity,-Infinity,-0,1e20,1e-5,5e-324,NULL}"]),
        array("numeric[]", &["{1.500,NaN,-0.0000000001,1e50,Infinity,NULL}"]),
        array("numeric(10,2)[]", &["{1.5}"]),
        array("text[]", &text),
        array("varchar(20)[]", &text),
        array("name[]", &["{a,\"b c\"}"]),
        array("public.mood[]", &["{\"so, so\",sad,\"\\\"ok\\\"\"}"]),
        array("public.pair[]", &["{\"(1,\\\"a\\\")\",NULL}"]),
        array("bytea[]", &["{\"\\\\x00ff\",\"\\\\x\"}"]),
        array("date[]", &["{infinity,2024-01-01,\"0001-01-01 BC\"}"]),
        array("timestamptz[]", &["{\"2024-01-01 00:00:00.5+00\",-infinity}"]),
        array("json[]", &["{\"{\\\"a\\\": [1, null]}\",null,\"null\"}"]),
        array("jsonb[]", &["{\"{\\\"a\\\": \\\"\\\\\\\\n\\\"}\"}"]),
        array("uuid[]", &["{ffffffff-ffff-ffff-ffff-ffffffffffff}"]),
        array("int4range[]", &["{\"[1,2)\",empty}"]),
        array("money[]", &["{\"1234.5\"}"]),
        array("interval[]", &["{\"-1 days -00:00:01\"}"]),
        array("box[]", &["{(1,1),(0,0);(2,2),(1,1)}", "{NULL;(1,1),(0,0)}"]),
        array("point[]", &["{\"(1,2)\",\"(3,4)\"}"]),
        array("public.labels", &["{a,NULL}"]),
    ]
}

/// SQL that computes the cell's rendering (see `rendered`) another way than by the text that is converted, NULL where the value does not fit.
fn expected_sql(conversion: Conversion) -> String {
    let decimal = |whole: usize, scale: usize| {
        let fits = format!("v NOT IN ('NaN', 'Infinity', '-Infinity') AND abs(v) < 1e{whole}::numeric AND scale(trim_scale(v)) <= {scale}");
        format!(
            "CASE WHEN v::text IN ('NaN', 'Infinity', '-Infinity') THEN NULL WHEN {fits} THEN trim_scale(v * 1e{scale}::numeric)::text END"
        )
    };
    let in_years = "isfinite(v) AND extract(year FROM v) BETWEEN 1 AND 9999";
    let lower_bounds = (1..=6).map(|n| format!("coalesce(array_lower(v, {n}), 1) = 1")).collect::<Vec<_>>().join(" AND ");
    match conversion {
        Conversion::Boolean => "CASE WHEN v THEN '1' ELSE '0' END".to_owned(),
        Conversion::Int64 => "to_hex(v::int8)".to_owned(),
        Conversion::Float => "encode(float4send(v), 'hex')".to_owned(),
        Conversion::Double => "encode(float8send(v), 'hex')".to_owned(),
        Conversion::Decimal38_9 => decimal(29, 9),
        Conversion::Decimal76_38 => decimal(38, 38),
        Conversion::Bytea => "encode(v, 'hex')".to_owned(),
        Conversion::Date => format!("CASE WHEN {in_years} THEN (v - date '1970-01-01')::text END"),
        Conversion::Timestamp | Conversion::DateTime => {
            format!("CASE WHEN {in_years} THEN trim_scale(extract(epoch FROM v) * 1000000)::text END")
        }
        Conversion::Text => "encode(convert_to(format('%s', v), 'UTF8'), 'hex')".to_owned(),
        Conversion::Array { element: Element::Text, .. } => format!("CASE WHEN {lower_bounds} THEN to_json(v::text[])::text END"),
        Conversion::Array { .. } => format!("CASE WHEN {lower_bounds} THEN to_json(v)::text END"),
        Conversion::Hashed => unreachable!("no type is hashed by itself"),
    }
}

/// The cell in the form that `expected_sql` gives.
fn rendered(cells: &ArrayRef, row: usize, conversion: Conversion) -> Option<String> {
    let hex = |bytes: &[u8]| bytes.iter().map(|b| format!("{b:02x}")).collect::<String>();
    cells.is_valid(row).then(|| match conversion {
        Conversion::Boolean => u8::from(cells.as_boolean().value(row)).to_string(),
        Conversion::Int64 => format!("{:x}", cells.as_primitive::<Int64Type>().value(row)),
        Conversion::Float => hex(&cells.as_primitive::<Float32Type>().value(row).to_be_bytes()),
        Conversion::Double => hex(&cells.as_primitive::<Float64Type>().value(row).to_be_bytes()),
        Conversion::Decimal38_9 => cells.as_primitive::<Decimal128Type>().value(row).to_string(),
        Conversion::Decimal76_38 => cells.as_primitive::<Decimal256Type>().value(row).to_string(),
        Conversion::Bytea => hex(cells.as_binary::<i32>().value(row)),
        Conversion::Date => cells.as_primitive::<Date32Type>().value(row).to_string(),
        Conversion::Timestamp | Conversion::DateTime => cells.as_primitive::<TimestampMicrosecondType>().value(row).to_string(),
        Conversion::Text => hex(cells.as_string::<i32>().value(row).as_bytes()),
        Conversion::Array { .. } | Conversion::Hashed => cells.as_string::<i32>().value(row).to_owned(),
    })
}

/// Creates a table of the case's values and a NULL, and reads its column's type as a catalogue does.
async fn fill(client: &Client, case: &Case) -> PgType {
    let literals = case.values.iter().map(|v| format!("E'{}'", v.replace('\\', "\\\\").replace('\'', "\\'")));
    let values = literals.chain(["NULL".to_owned()]).enumerate().map(|(n, v)| format!("({n}, {v})")).collect::<Vec<_>>().join(", ");
    let sql =
        format!("DROP TABLE IF EXISTS public.t; CREATE TABLE public.t (n int, v {}); INSERT INTO public.t VALUES {values}", case.name);
    client.batch_execute(&sql).await.unwrap_or_else(|error| panic!("{}: {error:?}", case.name));
    let catalogue = "SELECT coalesce(b.oid, t.oid), CASE WHEN t.typtype = 'd' THEN t.typtypmod ELSE a.atttypmod END, format_type(a.atttypid, a.atttypmod), \
        CASE WHEN coalesce(b.typcategory, t.typcategory) = 'A' THEN e.oid END, e.typdelim \
        FROM pg_catalog.pg_attribute a JOIN pg_catalog.pg_type t ON t.oid = a.atttypid LEFT JOIN pg_catalog.pg_type b ON t.typtype = 'd' AND b.oid = t.typbasetype \
        LEFT JOIN pg_catalog.pg_type e ON e.oid = coalesce(b.typelem, t.typelem) WHERE a.attrelid = 'public.t'::regclass AND a.attname = 'v'";
    let row = rows(client, catalogue).await.remove(0);
    let number = |n: usize| row[n].as_ref().map(|text| text.parse::<i64>().unwrap());
    PgType {
        oid: number(0).unwrap() as u32,
        typmod: number(1).unwrap() as i32,
        name: row[2].clone().unwrap(),
        element: number(3).map(|oid| oid as u32),
        element_typmod: number(1).unwrap() as i32,
        delimiter: row[4].as_ref().map_or(b',', |text| text.as_bytes()[0]),
    }
}

async fn check(client: &Client, case: &Case) {
    let pg_type = fill(client, case).await;
    let conversion = conversion(&pg_type);
    assert_eq!(conversion.lake_type(), case.lake, "{pg_type:?}");
    let read = rows(client, &format!("SELECT v, {} FROM public.t ORDER BY n", expected_sql(conversion))).await;
    assert_eq!(read.len(), case.values.len() + 1);
    let mut builder = ColumnBuilder::new(&conversion);
    let fits: Vec<bool> = read
        .iter()
        .map(|row| match &row[0] {
            Some(text) => builder.append_text(text.as_bytes()).is_ok(),
            None => {
                builder.append_null();
                true
            }
        })
        .collect();
    let cells = builder.finish();
    assert_eq!(*cells.data_type(), case.lake.arrow());
    for (n, row) in read.iter().enumerate() {
        let (text, expected) = (&row[0], &row[1]);
        let Some(text) = text else {
            assert!(cells.is_null(n), "{}: NULL became a value", case.name);
            continue;
        };
        let cell = rendered(&cells, n, conversion);
        let equal = match conversion {
            // to_json escapes a little differently; what the JSON means must be the same.
            Conversion::Array { element: Element::Text, .. } => parsed(&cell) == parsed(expected),
            _ => cell == *expected,
        };
        assert!(equal, "{}: {text:?} became {cell:?}, not {expected:?}", case.name);
        assert_eq!(fits[n], expected.is_some(), "{}: {text:?}", case.name);
        assert_eq!(exception_text(text.as_bytes()), *text);
    }
}

fn parsed(json: &Option<String>) -> Option<serde_json::Value> {
    json.as_ref().map(|text| serde_json::from_str(text).unwrap())
}

#[tokio::test]
async fn what_a_server_prints_becomes_the_cell_that_it_means() {
    let Some(mut server) = Server::start() else {
        eprintln!("SKIPPED: no PostgreSQL server program (set HUELLA_PG_BIN)");
        return;
    };
    let client = server.connect().await;
    client.batch_execute(PINNED).await.unwrap();
    client
        .batch_execute(
            "CREATE TYPE public.mood AS ENUM ('sad', 'so, so', '\"ok\"'); CREATE TYPE public.pair AS (a int, b text); \
             CREATE DOMAIN public.short AS varchar(10); CREATE DOMAIN public.labels AS text[]",
        )
        .await
        .unwrap();
    let version: u32 = rows(&client, "SHOW server_version_num").await[0][0].as_ref().unwrap().parse().unwrap();
    let mut cases = scalars();
    cases.extend(arrays());
    if version >= 150_000 {
        cases.push(case("numeric(5,-3)", LakeType::Decimal38_9, &["12345678", "-99999000", "499", "0"]));
        cases.push(case("numeric(3,5)", LakeType::Decimal38_9, &["0.00123", "-0.00999"]));
        cases.push(case("numeric(3,38)", LakeType::Decimal76_38, &["1e-38", "-9e-36"]));
        cases.push(case("numeric(36,-3)", LakeType::String, &["1e38"]));
        cases.push(case("numeric(3,39)", LakeType::String, &["1e-39"]));
    }
    let mut checked = 0;
    for case in &cases {
        check(&client, case).await;
        checked += case.values.len();
    }
    println!("{checked} values of {} types on server {version}", cases.len());
}

/// Doubles, decimals and timestamps in numbers, made by the server's own random generator.
#[tokio::test]
async fn random_values_survive_exactly() {
    let Some(mut server) = Server::start() else {
        eprintln!("SKIPPED: no PostgreSQL server program (set HUELLA_PG_BIN)");
        return;
    };
    let client = server.connect().await;
    client.batch_execute(PINNED).await.unwrap();
    let made = [
        ("float8", "(random() - 0.5) * 10 ^ (random() * 600 - 300)"),
        ("float4", "((random() - 0.5) * 10 ^ (random() * 70 - 35))::float4"),
        ("int8", "((random() - 0.5) * 1.8e19)::int8"),
        ("numeric", "trunc(((random() - 0.5)::numeric * 10::numeric ^ (random() * 32)::int), (random() * 12)::int)"),
        ("numeric(76,38)", "(random() - 0.5)::numeric * 10::numeric ^ ((random() * 74)::int - 37)"),
        ("timestamptz", "'0001-01-01 00:00+00'::timestamptz + random() * interval '3652058 days'"),
        ("timestamp", "'0001-01-01 00:00'::timestamp + random() * interval '3652058 days'"),
        ("date", "'0001-01-01'::date + (random() * 3652058)::int"),
        ("float8[]", "ARRAY[random() * 1e20, NULL, -random() * 1e-20]"),
    ];
    for (name, sql) in made {
        let values = rows(&client, &format!("SELECT ({sql})::text FROM generate_series(1, 500)")).await;
        let values: Vec<String> = values.into_iter().map(|mut row| row.remove(0).unwrap()).collect();
        let lake = conversion(&fill(&client, &case(name, LakeType::String, &[])).await).lake_type();
        check(&client, &Case { name: name.to_owned(), lake, values }).await;
    }
}
