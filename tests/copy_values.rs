//! Snapshot and stream give the same cells, for values of every kind of type: a copy fetches most of them in binary, the
//! stream brings text, and no cell may show which way it came.

#![allow(clippy::unwrap_used)] // a broken test may panic

mod lake_reader;
mod private_server;
mod world;

use arrow_array::cast::AsArray;
use arrow_array::types::Int64Type;
use arrow_array::{Array, RecordBatch};
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use std::collections::BTreeMap;
use world::World;

/// A type, and values of it as literals.
const TYPES: &[(&str, &[&str])] = &[
    ("bool", &["t", "f"]),
    ("int2", &["-32768", "32767", "0"]),
    ("int4", &["-2147483648", "2147483647", "-1"]),
    ("int8", &["-9223372036854775808", "9223372036854775807", "1099511627776"]),
    ("oid", &["0", "4294967295", "2147483648"]),
    ("float4", &["NaN", "Infinity", "-Infinity", "-0", "1e-45", "3.4028235e38", "0.1"]),
    ("float8", &["NaN", "Infinity", "-Infinity", "-0", "5e-324", "1.7976931348623157e308", "0.1", "123456.789"]),
    (
        "numeric",
        &[
            "NaN",
            "Infinity",
            "-Infinity",
            "0",
            "-0",
            "0.000",
            "0.000000001",
            "-0.000000001",
            "0.0000000001",
            "1.5000000000000000",
            "10000",
            "100000000",
            "99999999999999999999999999999.999999999",
            "-99999999999999999999999999999.999999999",
            "100000000000000000000000000000",
            "12345678901234567890.5",
            "1e40",
            "-1e-20",
            "123456789.0001000",
            "9999.9999",
            "0.00010000",
        ],
    ),
    ("numeric(12,2)", &["NaN", "0", "-0.01", "9999999999.99", "1234.5"]),
    ("numeric(38,9)", &["99999999999999999999999999999.999999999", "-0.000000001"]),
    (
        "numeric(50,20)",
        &["NaN", "0.00000000000000000001", "-123456789012345678901234567890.12345678901234567891", "10000000000000000000000000000"],
    ),
    (
        "numeric(76,38)",
        &["99999999999999999999999999999999999999.99999999999999999999999999999999999999", "-0.00000000000000000000000000000000000001"],
    ),
    ("numeric(100,60)", &["1.000000000000000000000000000000000000000000000000000000000001", "NaN", "-5"]),
    ("text", &["", "añ😀", "tab\tline\nback\\slash\\N", "\\N", "'quoted'"]),
    ("varchar(20)", &["", "varchar  ", "ñ"]),
    ("char(10)", &["", "dos  ", "ñandú"]),
    ("name", &["nombre", ""]),
    ("\"char\"", &["a", "", "\\"]),
    ("json", &["null", "{\"a\":  1.50, \"a\": 2}", "123456789012345678901234567890"]),
    ("jsonb", &["null", "{\"b\": [1, 2.50, null], \"a\": \"ñ\\n\"}", "123456789012345678901234567890.10", "\"\""]),
    ("uuid", &["00000000-0000-0000-0000-000000000000", "A0EEBC99-9C0B-4EF8-BB6D-6BB9BD380A11"]),
    ("bytea", &["", "\\x00", "\\xdeadbeef00ff"]),
    (
        "date",
        &[
            "infinity",
            "-infinity",
            "0001-01-01",
            "0001-12-31 BC",
            "0044-03-15 BC",
            "9999-12-31",
            "10000-01-01",
            "5874897-12-31",
            "4713-01-01 BC",
            "2000-02-29",
        ],
    ),
    (
        "timestamp",
        &[
            "infinity",
            "-infinity",
            "0001-01-01 00:00:00",
            "0001-12-31 23:59:59.999999 BC",
            "0044-03-15 01:02:03.5 BC",
            "9999-12-31 23:59:59.999999",
            "10000-01-01 00:00:00",
            "294276-12-31 23:59:59.999999",
            "4713-01-01 00:00:00 BC",
            "1969-12-31 23:59:59.999999",
            "2000-01-01 00:00:00",
        ],
    ),
    (
        "timestamptz",
        &[
            "infinity",
            "-infinity",
            "0001-01-01 00:00:00+00",
            "0001-12-31 23:59:59.999999+00 BC",
            "9999-12-31 23:59:59.999999+00",
            "10000-01-01 00:00:00.25+00",
            "294276-12-31 23:59:59.999999+00",
            "4713-01-01 00:00:00+00 BC",
            "2024-07-01 12:00:00-04",
            "1999-12-31 23:59:59.1+00",
        ],
    ),
    ("timestamp(3)", &["2024-01-01 00:00:00.1239", "infinity"]),
    ("time", &["24:00:00", "00:00:00", "12:34:56.789"]),
    ("timetz", &["24:00:00+00", "12:34:56.789-04"]),
    ("interval", &["1 year -2 days 03:04:05.6", "-1 mons", "0", "-178000000 years"]),
    ("inet", &["10.0.0.1", "10.0.0.1/8", "::1", "2001:db8::/32"]),
    ("cidr", &["10.0.0.0/8", "::/0", "10.0.0.1/32"]),
    ("macaddr", &["08:00:2b:01:02:03"]),
    ("money", &["$1,234.56", "-0.01"]),
    ("bit(5)", &["00000", "10101"]),
    ("varbit", &["", "101"]),
    ("point", &["(1.5,-0)"]),
    ("box", &["(1,1),(0,0)"]),
    ("int4range", &["empty", "[1,5)", "(,)"]),
    ("tstzrange", &["[2024-01-01 00:00+00,infinity)"]),
    ("int4[]", &["{}", "{1,NULL,-3}", "{{1,2},{3,4}}", "[0:1]={5,6}"]),
    ("text[]", &["{}", "{\"\",NULL,\"NULL\",\"a,b\",\"c\\\"d\"}"]),
    ("numeric[]", &["{NaN,1.50,Infinity}"]),
    ("bool[]", &["{t,f,NULL}"]),
    ("float8[]", &["{NaN,-0,1e300}"]),
    ("timestamptz[]", &["{\"2024-01-01 00:00:00+00\",infinity}"]),
    ("box[]", &["{(1,1),(0,0);(2,2),(1,1)}"]),
    ("tsvector", &["'gato':1 'perro':2A"]),
    ("pg_lsn", &["16/B374D848"]),
    ("int2vector", &["1 2 3"]),
    ("estado", &["abierto", "dos, palabras"]),
    ("estado[]", &["{abierto,\"dos, palabras\"}"]),
    ("par", &["(1,)", "(,)", "(1,\"a,b\")"]),
    ("edad", &["7", "150"]),
    ("corto", &["ñ", ""]),
    ("precio", &["1.50", "NaN"]),
    ("etiquetas", &["{a,b}"]),
    ("instante", &["infinity", "2024-01-01 00:00:00+00"]),
];

/// Types that are hashed as well: the hash is of the text, whatever way the value came.
const HASHED: &[&str] = &[
    "bool",
    "int4",
    "float8",
    "numeric",
    "text",
    "char(10)",
    "uuid",
    "jsonb",
    "bytea",
    "date",
    "timestamptz",
    "inet",
    "int4[]",
    "estado",
    "corto",
];

/// Values that the server makes at random.
const RANDOM: &[(&str, &str)] = &[
    ("float8", "(random() - 0.5) * 10 ^ (random() * 600 - 300)"),
    ("float4", "((random() - 0.5) * 10 ^ (random() * 70 - 35))::float4"),
    ("int8", "((random() - 0.5) * 1.8e19)::int8"),
    ("numeric", "trunc(((random() - 0.5)::numeric * 10::numeric ^ (random() * 40)::int), (random() * 12)::int)"),
    ("numeric(12,2)", "(random() - 0.5)::numeric * 10::numeric ^ (random() * 10)::int"),
    ("numeric(76,38)", "(random() - 0.5)::numeric * 10::numeric ^ ((random() * 74)::int - 37)"),
    ("timestamptz", "'4713-01-01 00:00+00 BC'::timestamptz + random() * interval '5500000 days'"),
    ("timestamp", "'4713-01-01 00:00 BC'::timestamp + random() * interval '5500000 days'"),
    ("date", "'4713-01-01 BC'::date + (random() * 5500000)::int"),
    ("uuid", "gen_random_uuid()"),
    ("bytea", "decode(md5(random()::text), 'hex')"),
];

fn rows_of(w: &World) -> Vec<RecordBatch> {
    let open = |path| ParquetRecordBatchReaderBuilder::try_new(std::fs::File::open(path).unwrap()).unwrap().build().unwrap();
    w.read().live("public.t").into_iter().flat_map(|path| open(path).map(Result::unwrap).collect::<Vec<_>>()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn snapshot_and_stream_give_identical_cells_for_every_type() {
    let w = World::new().await;
    w.sql(
        "CREATE TYPE estado AS ENUM ('abierto', 'dos, palabras'); CREATE TYPE par AS (a int, b text);
         CREATE DOMAIN edad AS int CHECK (VALUE < 200); CREATE DOMAIN corto AS varchar(10); CREATE DOMAIN precio AS numeric(10,2);
         CREATE DOMAIN etiquetas AS text[]; CREATE DOMAIN instante AS timestamptz",
    )
    .await;
    let mut names = vec!["id".to_owned()];
    let mut columns = vec!["id int PRIMARY KEY".to_owned()];
    let mut values: Vec<Vec<String>> = Vec::new();
    let plain = TYPES.iter().map(|(name, values)| (*name, *values, false));
    let hashed = TYPES.iter().filter(|(name, _)| HASHED.contains(name)).map(|(name, values)| (*name, *values, true));
    let all: Vec<_> = plain.chain(hashed).collect();
    let mut secret = Vec::new();
    for (n, (name, literals, hash)) in all.iter().enumerate() {
        let column = if *hash { format!("h{n}") } else { format!("c{n}") };
        columns.push(format!("{column} {name}"));
        values.push(literals.iter().map(|text| format!("'{}'::{name}", text.replace('\'', "''"))).collect());
        secret.extend(hash.then(|| format!("\"{column}\"")));
        names.push(column);
    }
    w.sql(&format!("CREATE TABLE t ({})", columns.join(", "))).await;
    let longest = values.iter().map(Vec::len).max().unwrap();
    for row in 0..=longest {
        let cells: Vec<&str> = values.iter().map(|of| of.get(row).map_or("NULL", String::as_str)).collect();
        w.sql(&format!("INSERT INTO t VALUES ({}, {})", row + 1, cells.join(", "))).await;
    }
    let mut random: Vec<(&str, &str)> = Vec::new();
    for (made, sql) in RANDOM {
        random.extend(all.iter().zip(&names[1..]).filter(|((name, _, _), _)| name == made).map(|(_, column)| (column.as_str(), *sql)));
    }
    let (into, made): (Vec<_>, Vec<_>) = random.into_iter().unzip();
    w.sql(&format!("INSERT INTO t (id, {}) SELECT 100 + i, {} FROM generate_series(1, 1000) i", into.join(", "), made.join(", "))).await;
    std::fs::write(w.dir.path().join("huella.toml"), format!("[[table]]\nname = \"public.t\"\nhash = [{}]\n", secret.join(", "))).unwrap();
    let run = w.start(&["run"], &[("HUELLA_HASH_KEY", "una clave bastante larga")]);
    w.caught_up().await;
    let copies: Vec<String> = names.iter().skip(1).cloned().collect();
    w.sql(&format!("INSERT INTO t SELECT id + 10000, {} FROM t", copies.join(", "))).await;
    w.caught_up().await;
    run.stop();

    let batches = rows_of(&w);
    let mut places = BTreeMap::new();
    for (n, batch) in batches.iter().enumerate() {
        let (ops, ids) = (batch.column_by_name("_op").unwrap().as_string::<i32>().clone(), batch.column_by_name("id").unwrap().clone());
        for at in 0..batch.num_rows() {
            match ops.value(at) {
                "SNAPSHOT" => places.insert((ids.as_primitive::<Int64Type>().value(at), false), (n, at)),
                "INSERT" => places.insert((ids.as_primitive::<Int64Type>().value(at) - 10_000, true), (n, at)),
                other => {
                    assert_eq!(other, "TRUNCATE");
                    None
                }
            };
        }
    }
    let rows: Vec<i64> = places.keys().filter(|(_, streamed)| !streamed).map(|(id, _)| *id).collect();
    assert_eq!((rows.len(), places.len()), (longest + 1 + 1000, 2 * (longest + 1 + 1000)));
    let mut excepted = 0;
    for id in rows {
        let ((a, i), (b, j)) = (places[&(id, false)], places[&(id, true)]);
        for name in names.iter().skip(1).map(String::as_str).chain(["_exceptions"]) {
            let (copied, streamed) = (batches[a].column_by_name(name).unwrap(), batches[b].column_by_name(name).unwrap());
            let (copied, streamed) = (copied.slice(i, 1), streamed.slice(j, 1));
            assert_eq!(copied.to_data(), streamed.to_data(), "row {id}, {name}");
            excepted += usize::from(name == "_exceptions" && copied.is_valid(0));
        }
    }
    assert!(excepted > 15, "values that do not fit were among them");
}
