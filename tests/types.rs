//! Every type that a server has, at every edge: copied and streamed it gives the same cells, and they are the contract's.

#![allow(clippy::unwrap_used)] // a broken test may panic

mod edges;
mod exact;
mod lake_reader;
mod private_server;
mod world;

use edges::Class;
use exact::{Cell, Row};
use std::collections::BTreeMap;
use tokio_postgres::{Client, SimpleQueryMessage};
use world::World;

struct Column {
    name: String,
    declared: String,
    class: Class,
    values: &'static [&'static str],
}

async fn query(client: &Client, sql: &str) -> Vec<Vec<Option<String>>> {
    let messages = client.simple_query(sql).await.unwrap_or_else(|e| panic!("{}: {e:?}", sql.chars().take(500).collect::<String>()));
    let rows = messages.into_iter().filter_map(|m| if let SimpleQueryMessage::Row(row) = m { Some(row) } else { None });
    rows.map(|row| (0..row.len()).map(|i| row.get(i).map(str::to_owned)).collect()).collect()
}

/// A session that prints as the contract pins it.
async fn pinned(w: &World) -> Client {
    let client = w.server.connect().await;
    let pins = "SET TimeZone = 'UTC'; SET DateStyle = 'ISO'; SET IntervalStyle = 'postgres'; SET extra_float_digits = 3; SET bytea_output = 'hex'; SET lc_monetary = 'C'";
    client.batch_execute(pins).await.unwrap();
    client
}

async fn version(client: &Client) -> u32 {
    query(client, "SHOW server_version_num").await[0][0].as_ref().unwrap().parse().unwrap()
}

fn literal(value: &str) -> String {
    format!("E'{}'", value.replace('\\', "\\\\").replace('\'', "\\'"))
}

/// A column for each type of the server but arrays, and for types with modifiers.
async fn columns(client: &Client) -> Vec<Column> {
    let catalogue = "SELECT n.nspname, t.typname FROM pg_catalog.pg_type t JOIN pg_catalog.pg_namespace n ON n.oid = t.typnamespace
         LEFT JOIN pg_catalog.pg_class c ON c.oid = t.typrelid
        WHERE t.typtype IN ('b', 'd', 'e', 'r', 'm', 'c') AND t.typisdefined AND n.nspname IN ('pg_catalog', 'public', 'information_schema')
          AND t.typoutput <> 'pg_catalog.array_out'::pg_catalog.regproc AND (t.typtype <> 'c' OR n.nspname = 'public') AND t.typarray <> 0 ORDER BY 1, 2";
    let mut columns = Vec::new();
    let mut unknown = Vec::new();
    for row in query(client, catalogue).await {
        let (schema, name) = (row[0].clone().unwrap(), row[1].clone().unwrap());
        let declared = format!("{schema}.\"{name}\"");
        // A server may be built without XML.
        let lacks = name == "xml" && client.batch_execute("SELECT '<a/>'::pg_catalog.xml").await.is_err();
        match edges::values(&name).map(|values| if lacks { &[] } else { values }) {
            Some(values) => columns.push(Column { name: String::new(), declared, class: edges::class(&name), values }),
            None => unknown.push(name),
        }
    }
    assert!(unknown.is_empty(), "types without values in tests/edges: {unknown:?}");
    let modified =
        edges::modified().into_iter().chain(if version(client).await >= 150_000 { edges::modified_since_15() } else { Vec::new() });
    columns.extend(modified.map(|(declared, class, values)| Column { name: String::new(), declared: declared.to_owned(), class, values }));
    for (at, column) in columns.iter_mut().enumerate() {
        column.name = format!("c{at} {}", column.declared.replace(['"', '.'], " ").chars().take(40).collect::<String>());
    }
    columns
}

fn quoted(name: &str) -> String {
    format!("\"{name}\"")
}

fn array_name(column: &Column) -> String {
    format!("{} []", column.name)
}

/// The value's stored form, computed by the server another way than by its text; NULL where the contract wants an exception.
fn stored_sql(column: &Column) -> String {
    let v = format!("t.{}", quoted(&column.name));
    let decimal = |whole: usize, scale: usize| {
        format!(
            "CASE WHEN {v}::text IN ('NaN', 'Infinity', '-Infinity') THEN NULL WHEN abs({v}) < 1e{whole}::numeric AND scale(trim_scale({v})) <= {scale}
             THEN trim_scale({v} * 1e{scale}::numeric)::text END"
        )
    };
    let in_years = format!("isfinite({v}) AND extract(year FROM {v}) BETWEEN 1 AND 9999");
    match column.class {
        Class::Bool | Class::Int | Class::Text => "NULL".to_owned(),
        Class::Float4 => format!("encode(float4send({v}), 'hex')"),
        Class::Float8 => format!("encode(float8send({v}), 'hex')"),
        Class::Decimal38 => decimal(29, 9),
        Class::Decimal76 => decimal(38, 38),
        Class::Bytea => format!("encode({v}, 'hex')"),
        Class::Date => format!("CASE WHEN {in_years} THEN ({v}::date - date '1970-01-01')::text END"),
        Class::Timestamp => format!("CASE WHEN {in_years} THEN trim_scale(extract(epoch FROM {v}) * 1000000)::text END"),
    }
}

/// An element of an array as the contract writes it.
fn element(column: &Column, text: Option<&String>) -> String {
    let Some(text) = text else { return "null".to_owned() };
    // A numeric too wide for the lake's decimals is text by itself, and a number in JSON.
    let is_number = column.class.is_number() || column.declared.starts_with("numeric");
    match column.class {
        Class::Bool => if text == "t" { "true" } else { "false" }.to_owned(),
        _ if is_number && !["NaN", "Infinity", "-Infinity"].contains(&text.as_str()) => text.clone(),
        _ => serde_json::to_string(text).unwrap(),
    }
}

/// Cells that the contract promises for the rows of `copia`, by key and column.
async fn promised(client: &Client, columns: &[Column]) -> BTreeMap<i64, BTreeMap<String, Cell>> {
    let pairs: Vec<String> = columns.iter().map(|c| format!("t.{}, {}", quoted(&c.name), stored_sql(c))).collect();
    let rows = query(client, &format!("SELECT k, {} FROM public.copia t ORDER BY k", pairs.join(", "))).await;
    let mut promised = BTreeMap::new();
    for row in &rows {
        let key = row[0].clone().unwrap();
        let mut cells = BTreeMap::from([("k".to_owned(), Cell::Value(key.clone()))]);
        for (at, column) in columns.iter().enumerate() {
            let (text, stored) = (&row[1 + 2 * at], &row[2 + 2 * at]);
            let same = matches!(column.class, Class::Bool | Class::Int | Class::Text);
            let cell = match (text, stored) {
                (None, _) => Cell::Null,
                (Some(text), _) if same => Cell::Value(text.clone()),
                (Some(_), Some(stored)) => Cell::Value(stored.clone()),
                (Some(text), None) => Cell::Exception(text.clone()),
            };
            cells.insert(column.name.clone(), cell);
            let array = match key.as_str() {
                "1" => {
                    let elements: Vec<String> = rows.iter().map(|row| element(column, row[1 + 2 * at].as_ref())).collect();
                    Cell::Value(format!("[{}]", elements.join(",")))
                }
                "2" => Cell::Value("[]".to_owned()),
                "3" => Cell::Exception(format!("[0:1]={{NULL{0}NULL}}", delimiter(column))),
                "4" => Cell::Value("[[null],[null]]".to_owned()),
                _ => Cell::Null,
            };
            cells.insert(array_name(column), array);
        }
        promised.insert(key.parse().unwrap(), cells);
    }
    promised
}

fn delimiter(column: &Column) -> char {
    if column.declared == "pg_catalog.\"box\"" { ';' } else { ',' }
}

/// `copia` with a row for each value, arrays of them all, and tables of the same shape that are filled while the stream runs.
async fn fill(client: &Client, columns: &[Column]) {
    let declared: Vec<String> =
        columns.iter().map(|c| format!("{} {}, {} {}[]", quoted(&c.name), c.declared, quoted(&array_name(c)), c.declared)).collect();
    let count = columns.iter().map(|c| c.values.len()).max().unwrap().max(5) + 1;
    client.batch_execute(&format!("CREATE TABLE public.copia (k int PRIMARY KEY, {})", declared.join(", "))).await.unwrap();
    for row in 0..count {
        let cell = |c: &Column| c.values.get(row).map_or("NULL".to_owned(), |v| format!("{}::{}", literal(v), c.declared));
        let list: Vec<String> = columns.iter().map(|c| format!("{}, NULL", cell(c))).collect();
        let sql = format!("INSERT INTO public.copia VALUES ({}, {})", row + 1, list.join(", "));
        if let Err(error) = client.batch_execute(&sql).await {
            // Which of them?
            for column in columns {
                let one = client.batch_execute(&format!("SELECT {}", cell(column))).await;
                assert!(one.is_ok(), "{} {:?}: {one:?}", column.declared, column.values.get(row));
            }
            panic!("{error:?}");
        }
    }
    let names: Vec<String> = columns.iter().map(|c| quoted(&array_name(c))).collect();
    let all: Vec<String> = columns.iter().map(aggregated).collect();
    let set = |values: Vec<String>, key: u32| {
        format!("UPDATE public.copia SET ({}) = ROW ({}) WHERE k = {key}", names.join(", "), values.join(", "))
    };
    let sql = format!("UPDATE public.copia SET ({}) = (SELECT {} FROM public.copia) WHERE k = 1", names.join(", "), all.join(", "));
    client.batch_execute(&sql).await.unwrap();
    client.batch_execute(&set(columns.iter().map(|_| "'{}'".to_owned()).collect(), 2)).await.unwrap();
    client.batch_execute(&set(columns.iter().map(|c| format!("'[0:1]={{NULL{}NULL}}'", delimiter(c))).collect(), 3)).await.unwrap();
    client.batch_execute(&set(columns.iter().map(|c| format!("'{{{{NULL}}{}{{NULL}}}}'", delimiter(c))).collect(), 4)).await.unwrap();
    for table in ["vivo", "cambiado", "entero"] {
        client.batch_execute(&format!("CREATE TABLE public.{table} (LIKE public.copia INCLUDING ALL)")).await.unwrap();
    }
    client.batch_execute("ALTER TABLE public.entero REPLICA IDENTITY FULL").await.unwrap();
}

/// An array of all rows' values, in their order.
fn aggregated(column: &Column) -> String {
    let (name, declared) = (quoted(&column.name), &column.declared);
    // Of what is an array itself, array_agg makes one of more dimensions.
    if ["etiquetas", "int2vector", "oidvector"].iter().any(|array| declared.contains(array)) {
        let element = format!(r#"coalesce('"' || replace(replace({name}::text, '\', '\\'), '"', '\"') || '"', 'NULL')"#);
        return format!("('{{' || string_agg({element}, ',' ORDER BY k) || '}}')::{declared}[]");
    }
    format!("array_agg({name} ORDER BY k)")
}

fn assert_cells(what: &str, rows: &[&Row], promised: &BTreeMap<i64, BTreeMap<String, Cell>>, shift: i64) {
    assert_eq!(rows.len(), promised.len(), "{what}: rows");
    for row in rows {
        let Cell::Value(key) = &row.cells["k"] else { panic!("{what}: a row without a key") };
        let wanted = &promised[&(key.parse::<i64>().unwrap() - shift)];
        for (column, cell) in &row.cells {
            assert!(
                column == "k" || *cell == wanted[column],
                "{what}: {column} of row {key} is\n{cell:?}, and should be\n{:?}",
                wanted[column]
            );
        }
        assert_eq!(row.cells.len(), wanted.len(), "{what}: columns");
        assert_eq!(row.unchanged, None, "{what}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_type_of_the_server_is_copied_and_streamed_to_the_contracts_cells() {
    let w = World::new().await;
    let client = pinned(&w).await;
    for extension in edges::EXTENSIONS {
        if w.client.batch_execute(&format!("CREATE EXTENSION {extension} SCHEMA public")).await.is_err() {
            println!("SKIPPED: extension {extension} is not there");
        }
    }
    w.sql(edges::TYPES).await;
    let columns = columns(&client).await;
    println!("{} types on server {}", columns.len(), version(&client).await);
    fill(&client, &columns).await;
    let run = w.start(&["run"], &[]);
    w.caught_up().await;
    w.sql("INSERT INTO vivo SELECT * FROM copia; INSERT INTO cambiado (k) SELECT k FROM copia; INSERT INTO entero SELECT * FROM copia")
        .await;
    let names: Vec<String> = columns.iter().flat_map(|c| [quoted(&c.name), quoted(&array_name(c))]).collect();
    let list = names.join(", ");
    let from: Vec<String> = names.iter().map(|n| format!("c.{n}")).collect();
    w.sql(&format!("UPDATE cambiado t SET ({list}) = ROW ({}) FROM copia c WHERE c.k = t.k", from.join(", "))).await;
    w.sql("UPDATE entero SET k = k + 1000; DELETE FROM entero").await;
    w.caught_up().await;
    run.stop();
    let lake = w.read();
    lake.assert_exactly_once();
    let promised = promised(&client, &columns).await;
    let of = |table: &str, op: &str| exact::rows(&lake, table).into_iter().filter(|row| row.op == op).collect::<Vec<_>>();
    assert_cells("copied", &of("public.copia", "SNAPSHOT").iter().collect::<Vec<_>>(), &promised, 0);
    assert_cells("inserted", &of("public.vivo", "INSERT").iter().collect::<Vec<_>>(), &promised, 0);
    assert_cells("updated", &of("public.cambiado", "UPDATE").iter().collect::<Vec<_>>(), &promised, 0);
    assert_cells("moved under FULL", &of("public.entero", "UPDATE").iter().collect::<Vec<_>>(), &promised, 1000);
    let deleted = of("public.entero", "DELETE");
    let (moved, gone): (Vec<&Row>, Vec<&Row>) = deleted.iter().partition(|row| {
        let Cell::Value(key) = &row.cells["k"] else { panic!("a row without a key") };
        key.parse::<i64>().unwrap() <= 1000
    });
    assert_cells("deleted by a new key", &moved, &promised, 0);
    assert_cells("deleted", &gone, &promised, 1000);
    let (code, out) = w.run(&["verify"]);
    assert_eq!(code, 0, "{out}");
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_wide_and_empty_and_texts_long_and_odd_arrive() {
    let w = World::new().await;
    w.sql("CREATE TABLE textos (k int PRIMARY KEY, t text, v varchar, j jsonb, b bytea, a text[])").await;
    let cycle = ["int8", "text", "numeric", "timestamptz", "bool", "float8", "date", "jsonb", "bytea", "int4[]"];
    let wide: Vec<String> = (0..300).map(|i| format!("columna_{i} {}", cycle[i % cycle.len()])).collect();
    w.sql(&format!("CREATE TABLE ancha (id int PRIMARY KEY, {})", wide.join(", "))).await;
    w.sql(&format!("CREATE TABLE nula ({}); ALTER TABLE nula REPLICA IDENTITY FULL", wide.join(", "))).await;
    w.sql("CREATE TABLE una (solo text PRIMARY KEY); CREATE TABLE vacia (); ALTER TABLE vacia REPLICA IDENTITY FULL").await;
    let fill = |from: u32| {
        let controls: String = (1..32).chain([127]).map(|n| char::from_u32(n).unwrap()).collect();
        let controls = literal(&controls);
        let value = |i: usize| match i % cycle.len() {
            0 => i.to_string(),
            1 => format!("'texto {i}'"),
            2 => format!("{i}.5"),
            3 => "now()".to_owned(),
            4 => "true".to_owned(),
            5 => format!("{i}.25"),
            6 => "current_date".to_owned(),
            7 => format!("'{{\"a\": {i}}}'"),
            8 => format!("'\\x{i:04x}'"),
            _ => format!("'{{{i},NULL}}'"),
        };
        let values: Vec<String> = (0..300).map(value).collect();
        let values = values.join(", ");
        format!(
            "INSERT INTO textos VALUES ({from}, '', '', '\"\"', '', '{{\"\"}}'), ({from} + 1, NULL, NULL, 'null', NULL, '{{NULL}}'),
             ({from} + 2, {controls}, {controls}, to_jsonb({controls}::text), convert_to({controls}, 'UTF8'), ARRAY[{controls}]);
             INSERT INTO textos SELECT {from} + 3, repeat('ñ', 500000), NULL, to_jsonb(repeat('x', 1000000)), decode(repeat('00ff', 500000), 'hex'), array_fill('a,\"b'::text, ARRAY[20000]);
             INSERT INTO textos SELECT {from} + 4, string_agg(md5(i::text), E'\\n'), string_agg(md5(i::text), E'\\t'), NULL, NULL, array_agg(md5(i::text)) FROM generate_series(1, 32000) i;
             INSERT INTO ancha VALUES ({from}, {values}); INSERT INTO ancha (id) VALUES ({from} + 1); UPDATE ancha SET columna_299 = NULL, columna_0 = -1 WHERE id = {from};
             INSERT INTO nula DEFAULT VALUES; INSERT INTO nula DEFAULT VALUES; INSERT INTO nula VALUES ({values}); INSERT INTO vacia DEFAULT VALUES;
             INSERT INTO una VALUES ('{from}'), (E'{from}\\n'), (E'\\\\.{from}'), ('{from} \\N');"
        )
    };
    w.sql(&fill(1)).await;
    w.sql("INSERT INTO una VALUES (''), ('\\.'), ('\\N')").await;
    let run = w.start(&["run"], &[]);
    w.caught_up().await;
    w.sql(&fill(100)).await;
    w.sql("DELETE FROM una WHERE solo IN ('', '\\.'); UPDATE una SET solo = '' WHERE solo = '\\N'; DELETE FROM nula WHERE ctid = (SELECT min(ctid) FROM nula WHERE columna_0 IS NULL); UPDATE nula SET columna_1 = NULL WHERE columna_0 = 0").await;
    w.caught_up().await;
    run.stop();
    w.true_in_the_lake().await;
}

/// What changes the text of rows that are there already without touching the table: labels of enums, attributes of composites.
#[tokio::test(flavor = "multi_thread")]
async fn types_that_change_while_running_change_their_rows() {
    let w = World::new().await;
    w.sql("CREATE TYPE animo AS ENUM ('triste', 'feliz'); CREATE TYPE par AS (a int, b text); CREATE DOMAIN animo_d AS animo; CREATE TYPE rango AS RANGE (subtype = animo)")
        .await;
    w.sql("CREATE TABLE e (id int PRIMARY KEY, v animo, a animo[], d animo_d, r rango); CREATE TABLE c (id int PRIMARY KEY, v par, a par[]); CREATE TABLE otra (id int PRIMARY KEY, v text)").await;
    w.sql("INSERT INTO e VALUES (1, 'triste', '{feliz}', 'feliz', '[triste,feliz]'); INSERT INTO c VALUES (1, '(1,x)', '{\"(2,y)\"}'); INSERT INTO otra VALUES (1, 'x')").await;
    let run = w.start(&["run"], &[]);
    w.caught_up().await;
    let snapshot = |table: &str| w.watermark().unwrap()["tables"][table]["snapshot"].clone();
    let first = (snapshot("public.e"), snapshot("public.c"), snapshot("public.otra"));
    w.sql("ALTER TYPE animo ADD VALUE 'eufórico'").await;
    w.sql("INSERT INTO e VALUES (2, 'eufórico', '{eufórico,triste}', 'eufórico', '[feliz,eufórico]')").await;
    w.sql("ALTER TYPE animo ADD VALUE 'neutro' BEFORE 'feliz'").await;
    w.sql("UPDATE e SET v = 'neutro' WHERE id = 1").await;
    w.caught_up().await;
    tokio::time::sleep(std::time::Duration::from_millis(1500)).await; // a heartbeat: a look at the catalogue
    w.caught_up().await;
    assert_eq!(snapshot("public.e"), first.0, "a new label changes no row\n{}", w.log());
    let (code, out) = w.run(&["verify"]);
    assert_eq!(code, 0, "{out}");
    w.sql("ALTER TYPE animo RENAME VALUE 'feliz' TO 'contento'; ALTER TYPE par ADD ATTRIBUTE z date").await;
    w.wait("new copies", || snapshot("public.e") != first.0 && snapshot("public.c") != first.1);
    w.sql("INSERT INTO e VALUES (3, 'contento', NULL, NULL, '[contento,contento]'); INSERT INTO c VALUES (2, '(1,x,2024-01-01)', NULL)")
        .await;
    w.caught_up().await;
    run.stop();
    assert_eq!(w.run(&["verify"]).0, 0, "{}", w.log());
    assert_eq!(snapshot("public.otra"), first.2, "a table without these types is left alone");
    w.sql("ALTER TYPE animo RENAME VALUE 'triste' TO 'gris'; ALTER TYPE par DROP ATTRIBUTE z").await;
    assert_eq!(w.run(&["run", "--until-caught-up"]).0, 0, "{}", w.log());
    let (code, out) = w.run(&["verify"]);
    assert_eq!(code, 0, "{out}");
    for table in ["public.e", "public.c"] {
        assert_eq!(w.watermark().unwrap()["tables"][table]["version"], 1, "{table}");
    }
}

/// A database in SQL_ASCII holds any bytes; `"char"` of older servers prints any byte in every database.
#[tokio::test(flavor = "multi_thread")]
async fn bytes_that_are_no_text_stand_in_exceptions_as_hex() {
    let w = World::new().await;
    w.sql("CREATE DATABASE bytes TEMPLATE template0 ENCODING SQL_ASCII LC_COLLATE 'C' LC_CTYPE 'C'").await;
    let url = format!("postgresql://postgres@127.0.0.1:{}/bytes?sslmode=disable", w.server.port);
    let (source, connection) =
        tokio_postgres::connect(&format!("host=127.0.0.1 port={} user=postgres dbname=bytes", w.server.port), tokio_postgres::NoTls)
            .await
            .unwrap();
    tokio::spawn(connection);
    // A literal is taken as it is: the bytes are made on the server.
    let insert = |key: u32| {
        format!(
            "INSERT INTO t SELECT {key}, b, ARRAY['a', b], b, (-1)::int4::\"char\", 'ñ' FROM (SELECT convert_from('\\x61f1ff0a62', 'SQL_ASCII') AS b) x"
        )
    };
    source
        .batch_execute(
            "CREATE TABLE t (k int PRIMARY KEY, v text, a text[], c varchar, o \"char\", bien text); ALTER TABLE t REPLICA IDENTITY FULL",
        )
        .await
        .unwrap();
    source.batch_execute(&insert(1)).await.unwrap();
    let env = [("HUELLA_SOURCE_URL", url.as_str())];
    assert_eq!(w.start(&["run", "--until-caught-up"], &env).wait(), Some(0), "{}", w.log());
    source.batch_execute(&insert(2)).await.unwrap();
    source.batch_execute("UPDATE t SET k = 3 WHERE k = 2").await.unwrap();
    assert_eq!(w.start(&["run", "--until-caught-up"], &env).wait(), Some(0), "{}", w.log());
    let rows = exact::rows(&w.read(), "public.t");
    let octet = if version(&w.client).await < 150_000 { Cell::Exception("\\xff".into()) } else { Cell::Value("\\377".into()) };
    for row in &rows {
        assert_eq!(row.cells["v"], Cell::Exception("\\x61f1ff0a62".into()), "{}", row.op);
        assert_eq!(row.cells["c"], Cell::Exception("\\x61f1ff0a62".into()), "{}", row.op);
        let array = b"{a,\"a\xf1\xff\nb\"}".iter().map(|b| format!("{b:02x}")).collect::<String>();
        assert_eq!(row.cells["a"], Cell::Exception(format!("\\x{array}")), "{}", row.op);
        assert_eq!(row.cells["o"], octet, "{}", row.op);
        assert_eq!(row.cells["bien"], Cell::Value("ñ".into()));
    }
    let ops: Vec<&str> = rows.iter().map(|row| row.op.as_str()).collect();
    assert_eq!(ops, ["SNAPSHOT", "INSERT", "DELETE", "UPDATE"]);
    assert_eq!(w.start(&["verify"], &env).wait(), Some(0), "{}", w.log());
}
