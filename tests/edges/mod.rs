//! Values at the edges of every type that a server has.
//!
//! Owns: the values, and the contract's class of each type, written down apart from the program's own table.

mod stamps;

use stamps::STAMPS;

/// How the contract stores a type.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Class {
    Bool,
    Int,
    Float4,
    Float8,
    /// DECIMAL(38, 9).
    Decimal38,
    /// DECIMAL(76, 38).
    Decimal76,
    Bytea,
    Date,
    Timestamp,
    Text,
}

impl Class {
    /// Whether an array's elements of it are JSON numbers.
    pub(crate) fn is_number(self) -> bool {
        matches!(self, Class::Int | Class::Float4 | Class::Float8 | Class::Decimal38 | Class::Decimal76)
    }
}

/// The class of a type without modifier.
pub(crate) fn class(name: &str) -> Class {
    match name {
        "bool" => Class::Bool,
        "int2" | "int4" | "int8" | "oid" | "cardinal_number" => Class::Int,
        "float4" => Class::Float4,
        "float8" => Class::Float8,
        "numeric" => Class::Decimal38,
        "bytea" => Class::Bytea,
        "date" | "dia" => Class::Date,
        "timestamp" | "timestamptz" | "time_stamp" => Class::Timestamp,
        "precio" | "precio_neto" => Class::Decimal38,
        _ => Class::Text,
    }
}

/// What the tests make besides what every server has.
pub(crate) const TYPES: &str = r#"
    CREATE TYPE animo AS ENUM ('feliz', 'so, so', '"ok"', '', 'ñandú', E'back\\slash', 'con espacio', 'NULL', '{}');
    CREATE TYPE par AS (a int, b text);
    CREATE TYPE nido AS (p par, m animo, d date, l int[], n numeric);
    CREATE TABLE fila (x int, "y z" text);
    CREATE DOMAIN corto AS varchar(10);
    CREATE DOMAIN precio AS numeric(10,2) CHECK (VALUE >= 0);
    CREATE DOMAIN precio_neto AS precio;
    CREATE DOMAIN etiquetas AS text[];
    CREATE DOMAIN dia AS date DEFAULT '2024-01-01';
    CREATE DOMAIN animo_fijo AS animo DEFAULT 'feliz';
    CREATE DOMAIN par_d AS par;
    CREATE DOMAIN franja AS tstzrange;
    CREATE TYPE rango_texto AS RANGE (subtype = text);
    CREATE TYPE rango_float AS RANGE (subtype = float8);"#;

/// Extensions whose types are tried where they can be had.
pub(crate) const EXTENSIONS: [&str; 5] = ["hstore", "citext", "ltree", "cube", "intarray"];

const FLOATS: [&str; 15] = [
    "0",
    "-0",
    "1",
    "0.1",
    "1e20",
    "1e-5",
    "123456.789",
    "1e15",
    "1e16",
    "NaN",
    "Infinity",
    "-Infinity",
    "3.4e38",
    "-1.17549435e-38",
    "1e-45",
];
const TEXTS: [&str; 14] = [
    "",
    " ",
    "NULL",
    "\\N",
    "\\.",
    "null",
    "a\tb\nc\r\\d\"e'",
    "añ 😀",
    "\u{1}\u{7f}",
    "{a}",
    "a,b",
    "(1,\"x\")",
    "e\u{301} \u{202e}der\u{feff}",
    "\u{10ffff}\u{ffff}",
];
/// Values of a type, as the text of literals. `None`: the table does not know the type. An empty list: it takes no input.
pub(crate) fn values(name: &str) -> Option<&'static [&'static str]> {
    Some(match name {
        "bool" => &["t", "f"],
        "bytea" => {
            &["", "\\x00ff10", "\\000\\\\abc", "\\xdeadbeef", "\\x000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f7f80"]
        }
        "char" => &["", "a", "'", "\\"],
        "name" => &["", "añ b", "\"q\"", "sesenta_y_tres_letras_son_las_que_caben_en_un_nombre_de_postgres"],
        "int8" => &["-9223372036854775808", "9223372036854775807", "-1", "0", "1099511627776"],
        "int2" => &["-32768", "32767", "0"],
        "int4" => &["-2147483648", "2147483647", "0"],
        "int2vector" => &["", "1 2", "-32768 32767 0"],
        "oidvector" => &["", "1 4294967295"],
        "regproc" => &["pg_catalog.now", "-"],
        "regprocedure" => &["pg_catalog.now()", "pg_catalog.abs(integer)"],
        "regoper" => &["pg_catalog.||/", "0"],
        "regoperator" => &["pg_catalog.+(integer,integer)", "0"],
        "regclass" => &["pg_catalog.pg_class", "public.fila", "-"],
        "regcollation" => &["pg_catalog.\"C\"", "-"],
        "regtype" => &["integer", "public.animo", "public.par[]", "character varying", "-"],
        "regconfig" => &["pg_catalog.spanish"],
        "regdictionary" => &["pg_catalog.simple"],
        "regnamespace" => &["public", "pg_catalog", "-"],
        "regrole" => &["postgres", "-"],
        "text" | "varchar" | "citext" => &TEXTS,
        "bpchar" => &["", "a", "añ  ", "  x", "\n "],
        "oid" => &["0", "4294967295"],
        "tid" => &["(0,0)", "(4294967295,65535)"],
        "xid" | "cid" => &["0", "4294967295"],
        "xid8" => &["0", "18446744073709551615"],
        "json" => &["null", "{ \"a\" : 1,\n \"a\":123456789012345678901234567890.10}", "\"\\u00f1\"", "[]", "1e400", "\"😀\""],
        "jsonb" => &["null", "{\"b\": 1, \"a\": 123456789012345678901234567890.10}", "\"\"", "[1, [2, {\"c\": null}]]", "\"\\n\\u001f\""],
        "jsonpath" => &["$", "$.a[*] ? (@ > 1)", "strict $.\"x y\""],
        "xml" => &["<a>ñ</a>", "texto", "<a b=\"1\">\n<!-- c --></a>"],
        "txid_snapshot" | "pg_snapshot" => &["10:20:10,14,15", "1:1:"],
        "point" => &["(1.5,-0)", "(1e300,NaN)", "(Infinity,-Infinity)"],
        "lseg" => &["[(0,0),(1,-1)]"],
        "path" => &["[(0,0),(1,1)]", "((0,0),(1,1),(2,0.5))"],
        "box" => &["(1,1),(0,0)", "(Infinity,1),(-Infinity,0)"],
        "polygon" => &["((0,0),(1,1),(2,0))"],
        "line" => &["{1,-1,0}"],
        "circle" => &["<(1,2),0>", "<(0,0),1e10>"],
        "float4" => &FLOATS,
        "float8" => &[
            "0",
            "-0",
            "0.1",
            "0.30000000000000004",
            "1.7976931348623157e308",
            "5e-324",
            "9007199254740993",
            "NaN",
            "Infinity",
            "-Infinity",
            "1e22",
        ],
        "money" => &["-92233720368547758.08", "92233720368547758.07", "0", "-0.01", "1234567.8"],
        "macaddr" => &["08:00:2b:01:02:03", "ff:ff:ff:ff:ff:ff"],
        "macaddr8" => &["08:00:2b:01:02:03:04:05"],
        "inet" => &["10.0.0.1/8", "::1", "192.168.0.1", "::ffff:1.2.3.4/128", "0.0.0.0/0"],
        "cidr" => &["10.0.0.0/8", "2001:db8::/32", "10.1.2.3/32"],
        "aclitem" => &["postgres=r/postgres", "=UC/postgres", "postgres=r*w*/postgres"],
        "date" => &[
            "0001-01-01",
            "0001-12-31 BC",
            "4713-01-01 BC",
            "9999-12-31",
            "10000-01-01",
            "5874897-12-31",
            "2000-02-29",
            "1969-12-31",
            "infinity",
            "-infinity",
        ],
        "time" => &["00:00:00", "24:00:00", "23:59:59.999999"],
        "timetz" => &["24:00:00-15:59", "00:00:00+05:30", "12:00:00.5+15:59:59"],
        "timestamp" | "timestamptz" => &STAMPS,
        "interval" => {
            &["0", "-1 year 2 mons -3 days +04:05:06.7", "178000000 years", "-178000000 years", "-00:00:00.000001", "1 mon -30 days"]
        }
        "bit" | "varbit" => &["", "1", "10101", "0000000000000000000000000000000000000000000000000000000000000000001"],
        "numeric" => &[
            "0",
            "0.000",
            "-1",
            "1.5000000000000000",
            "0.000000001",
            "-0.000000001",
            "0.0000000001",
            "99999999999999999999999999999.999999999",
            "-99999999999999999999999999999.999999999",
            "100000000000000000000000000000",
            "1e100",
            "-1e-100",
            "NaN",
            "Infinity",
            "-Infinity",
            "00012.50",
        ],
        "refcursor" => &["c", ""],
        "uuid" => &["00000000-0000-0000-0000-000000000000", "ffffffff-ffff-ffff-ffff-ffffffffffff"],
        "pg_lsn" => &["0/0", "FFFFFFFF/FFFFFFFF", "16/B374D848"],
        "tsvector" => &["", "'a':1A 'it''s':2", "'back\\\\slash'"],
        "tsquery" => &["", "'a' & !'b' <-> 'c':*AB"],
        "int4range" => &["empty", "[1,)", "(,)", "[-2147483648,2147483647)"],
        "int8range" => &["empty", "[-9223372036854775808,9223372036854775807)", "(,5)"],
        "numrange" => &["empty", "[1.50,2.500]", "(-1e-100,1e100)", "[NaN,NaN]", "(,)"],
        "tsrange" => &["empty", "[\"2024-01-01 00:00:00\",infinity)", "[-infinity,\"0001-01-01 00:00:00 BC\"]", "(,)"],
        "tstzrange" | "franja" => &["empty", "[\"2024-01-01 00:00:00.1+05\",infinity]", "(,)"],
        "daterange" => &["empty", "[2024-01-01,2024-01-02]", "[-infinity,infinity)", "[4713-01-01 BC,5874897-12-31)"],
        "int4multirange" | "int8multirange" => &["{}", "{[1,2),[5,9)}", "{(,)}"],
        "nummultirange" => &["{}", "{[1.50,2.500],(3,NaN)}"],
        "tsmultirange" => &["{}", "{[\"2024-01-01 00:00:00\",infinity)}"],
        "tstzmultirange" => &["{}", "{[\"2024-01-01 00:00:00+05\",infinity),[-infinity,\"2000-01-01 00:00:00+00\")}"],
        "datemultirange" => &["{}", "{[2024-01-01,2024-01-02]}"],
        "cardinal_number" => &["0", "2147483647"],
        "character_data" | "sql_identifier" => &["", "añ \"b\""],
        "time_stamp" => &["2024-01-01 00:00:00.129+00", "infinity"],
        "yes_or_no" => &["YES", "NO"],
        // Ours.
        "animo" | "animo_fijo" => &["feliz", "so, so", "\"ok\"", "", "ñandú", "back\\slash", "con espacio", "NULL", "{}"],
        "par" | "par_d" => &["(1,\"a \"\"b\"\"\")", "(,)", "(,\"\")", "(-1,\"a\\\\b,(c)\n\")"],
        "nido" => &["(\"(1,\"\"x y\"\")\",\"so, so\",infinity,\"{1,NULL}\",NaN)", "(,,,,)"],
        "fila" => &["(1,ñ)", "(,)"],
        "corto" => &["", "abc", "ñandúñandú"],
        "precio" | "precio_neto" => &["0", "99999999.99", "0.50"],
        "etiquetas" => &["{}", "{a,NULL,\"b c\"}"],
        "dia" => &["2024-02-29", "infinity", "0001-01-01 BC"],
        "rango_texto" => &["empty", "[a,b)", "(,\"z \"\"quoted\"\", x\"]", "[\"\",)"],
        "rango_float" => &["[-0,1e300)", "(,NaN]"],
        "rango_texto_multirange" => &["{}", "{[a,b),[c,\"d,e\"]}"],
        "rango_float_multirange" => &["{}", "{(,)}", "{[-0,1),[2,NaN]}"],
        // Extensions'.
        "hstore" => &["", "\"a\"=>\"1\", \"b\"=>NULL, \"ñ \\\"\"=>\"\"", "\"NULL\"=>\"NULL\""],
        "ltree" => &["", "Top.Science.Astronomy"],
        "lquery" => &["Top.*{1,2}.!x"],
        "ltxtquery" => &["Europe & Russia*@"],
        "cube" => &["(1, 2),(3, 4)", "(0)"],
        "query_int" => &["1&2|!3"],
        "pg_node_tree"
        | "pg_ndistinct"
        | "pg_dependencies"
        | "pg_mcv_list"
        | "pg_brin_bloom_summary"
        | "pg_brin_minmax_multi_summary"
        | "gtsvector"
        | "ghstore"
        | "ltree_gist"
        | "intbig_gkey" => &[],
        _ => return None,
    })
}

/// Types with modifiers.
pub(crate) fn modified() -> Vec<(&'static str, Class, &'static [&'static str])> {
    vec![
        ("varchar(5)", Class::Text, &["", "añ", "12345"]),
        ("char(5)", Class::Text, &["", "a", "añ", "12345"]),
        ("bit(5)", Class::Text, &["10101"]),
        ("varbit(5)", Class::Text, &["", "101"]),
        ("time(2)", Class::Text, &["23:59:59.999999", "00:00:00.125"]),
        ("timetz(0)", Class::Text, &["23:59:59.5+00"]),
        ("timestamp(0)", Class::Timestamp, &["2024-12-31 23:59:59.9", "9999-12-31 23:59:59.9"]),
        ("timestamptz(3)", Class::Timestamp, &["2024-01-01 00:00:00.1239+00", "infinity"]),
        ("interval year to month", Class::Text, &["1 year 2 mons 3 days"]),
        ("interval(0)", Class::Text, &["1.5 seconds"]),
        ("numeric(10,2)", Class::Decimal38, &["99999999.99", "-0.01", "NaN"]),
        ("numeric(38,9)", Class::Decimal38, &["99999999999999999999999999999.999999999", "NaN"]),
        ("numeric(29,0)", Class::Decimal38, &["-99999999999999999999999999999"]),
        ("numeric(30,0)", Class::Decimal76, &["999999999999999999999999999999"]),
        ("numeric(38,10)", Class::Decimal76, &["0.0000000001", "-9999999999999999999999999999.9999999999", "NaN"]),
        ("numeric(39,9)", Class::Decimal76, &["999999999999999999999999999999.999999999"]),
        (
            "numeric(76,38)",
            Class::Decimal76,
            &[
                "99999999999999999999999999999999999999.99999999999999999999999999999999999999",
                "-0.00000000000000000000000000000000000001",
                "NaN",
            ],
        ),
        ("numeric(39,0)", Class::Text, &["999999999999999999999999999999999999999", "NaN"]),
        ("numeric(100,50)", Class::Text, &["1.5", "NaN"]),
    ]
}

/// Of a scale below nothing or beyond the precision, which came with PostgreSQL 15.
pub(crate) fn modified_since_15() -> Vec<(&'static str, Class, &'static [&'static str])> {
    vec![
        ("numeric(5,-3)", Class::Decimal38, &["12345678", "-99999000", "499"]),
        ("numeric(3,5)", Class::Decimal38, &["0.00123", "-0.00999"]),
        ("numeric(3,38)", Class::Decimal76, &["1e-38", "-9e-36"]),
        ("numeric(36,-3)", Class::Text, &["1e38"]),
        ("numeric(3,39)", Class::Text, &["1e-39"]),
    ]
}
