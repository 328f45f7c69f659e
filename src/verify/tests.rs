//! Claims about the lake's side: canonical texts, files' rows as changes, the rule of the state.

use super::canonical::push_source;
use super::cell::{Cell, cells, push};
use super::changes::{Partition, Shape, ShapeColumn, changes, window};
use super::report::Report;
use super::state::{Change, State, reduce};
use super::table::source_row;
use crate::lsn::Lsn;
use crate::schema::{ColumnBuilder, Conversion, Element, HashKey};
use crate::table_name::TableName;
use arrow_array::{ArrayRef, Int64Array, RecordBatch, StringArray};
use std::sync::Arc;

/// What PostgreSQL prints, and whether the lake's type can hold it.
const TEXTS: [(Conversion, &str, bool); 40] = [
    (Conversion::Boolean, "t", true),
    (Conversion::Boolean, "f", true),
    (Conversion::Int64, "-9223372036854775808", true),
    (Conversion::Int64, "0", true),
    (Conversion::Float, "-0", true),
    (Conversion::Float, "1.1754944e-38", true),
    (Conversion::Float, "NaN", true),
    (Conversion::Double, "-0", true),
    (Conversion::Double, "5e-324", true),
    (Conversion::Double, "1.7976931348623157e+308", true),
    (Conversion::Double, "-Infinity", true),
    (Conversion::Decimal38_9, "0.00", true),
    (Conversion::Decimal38_9, "-0.000000001", true),
    (Conversion::Decimal38_9, "1500.50000000000", true),
    (Conversion::Decimal38_9, "99999999999999999999999999999.999999999", true),
    (Conversion::Decimal38_9, "100000000000000000000000000000", false),
    (Conversion::Decimal38_9, "0.0000000001", false),
    (Conversion::Decimal38_9, "NaN", false),
    (Conversion::Decimal38_9, "Infinity", false),
    (Conversion::Decimal76_38, "-12345678901234567890123456789012345678.00000000000000000000000000000000000001", true),
    (Conversion::Decimal76_38, "0", true),
    (Conversion::Text, "año\t\\N \"x\"", true),
    (Conversion::Text, "", true),
    (Conversion::Bytea, "\\x", true),
    (Conversion::Bytea, "\\x00ff", true),
    (Conversion::Date, "0001-01-01", true),
    (Conversion::Date, "9999-12-31", true),
    (Conversion::Date, "10000-01-01", false),
    (Conversion::Date, "0044-03-15 BC", false),
    (Conversion::Date, "infinity", false),
    (Conversion::DateTime, "1969-12-31 23:59:59.999999", true),
    (Conversion::DateTime, "2024-02-29 00:00:00", true),
    (Conversion::DateTime, "0001-01-01 00:00:00 BC", false),
    (Conversion::Timestamp, "0001-01-01 00:00:00+00", true),
    (Conversion::Timestamp, "9999-12-31 23:59:59.1+00", true),
    (Conversion::Timestamp, "-infinity", false),
    (Conversion::Timestamp, "0044-03-15 10:00:00+00 BC", false),
    (Conversion::Array { element: Element::Number, delimiter: b',' }, "{1,NULL,2}", true),
    (Conversion::Array { element: Element::Text, delimiter: b',' }, "{{a,\"b c\"},{NULL,\"\"}}", true),
    (Conversion::Array { element: Element::Number, delimiter: b',' }, "[0:1]={1,2}", false),
];

fn shape(columns: &[(&str, Conversion)], key: &[usize]) -> Shape {
    let column = |(name, conversion): &(&str, Conversion)| ShapeColumn {
        name: (*name).to_owned(),
        source: (*name).to_owned(),
        lake_type: conversion.lake_type(),
        conversion: *conversion,
    };
    Shape { columns: columns.iter().map(column).collect(), key: key.to_vec() }
}

/// A row of a hand-made file.
#[derive(Default, Clone, Copy)]
struct Row<'a> {
    op: &'a str,
    lsn: i64,
    seq: i64,
    id: Option<i64>,
    text: Option<&'a str>,
    unchanged: Option<&'a str>,
    old_key: Option<&'a str>,
    exceptions: Option<&'a str>,
}

fn row<'a>(op: &'a str, lsn: i64, seq: i64, id: i64, text: &'a str) -> Row<'a> {
    Row { op, lsn, seq, id: Some(id), text: Some(text), ..Row::default() }
}

fn batch(rows: &[Row<'_>]) -> RecordBatch {
    let text = |of: fn(&Row<'_>) -> Option<String>| Arc::new(rows.iter().map(of).collect::<StringArray>()) as ArrayRef;
    let number = |of: fn(&Row<'_>) -> Option<i64>| Arc::new(rows.iter().map(of).collect::<Int64Array>()) as ArrayRef;
    RecordBatch::try_from_iter([
        ("id", number(|r| r.id)),
        ("text", text(|r| r.text.map(str::to_owned))),
        ("_op", text(|r| Some(r.op.to_owned()))),
        ("_commit_lsn", number(|r| Some(r.lsn))),
        ("_seq", number(|r| Some(r.seq))),
        ("_unchanged", text(|r| r.unchanged.map(str::to_owned))),
        ("_old_key", text(|r| r.old_key.map(str::to_owned))),
        ("_exceptions", text(|r| r.exceptions.map(str::to_owned))),
    ])
    .unwrap()
}

fn two_columns(key: &[usize]) -> Shape {
    shape(&[("id", Conversion::Int64), ("text", Conversion::Text)], key)
}

fn read(rows: &[Row<'_>], shape: &Shape, partition: &Partition, snapshot: Option<u64>, point: u64) -> Vec<Change> {
    let mut all = Vec::new();
    changes(&batch(rows), shape, window(snapshot.map(Lsn), Lsn(point)), partition, &mut |change| all.push(change)).unwrap();
    all
}

fn state(rows: &[Row<'_>], key: &[usize]) -> State {
    let shape = two_columns(key);
    reduce(read(rows, &shape, &Partition::default(), None, 1000), !key.is_empty())
}

/// The state as `id text` lines, sorted.
fn lines(state: &State) -> Vec<String> {
    let show = |row: &[u8]| {
        let text = |cell| match cell {
            Cell::Null => "NULL".to_owned(),
            Cell::Value(bytes) => String::from_utf8_lossy(bytes).into_owned(),
            Cell::Exception(bytes) => format!("!{}", String::from_utf8_lossy(bytes)),
            Cell::Unchanged => "?".to_owned(),
        };
        cells(row).map(text).collect::<Vec<_>>().join(" ")
    };
    let counted = state.counts.iter().map(|(row, count)| format!("{} x{count}", show(row)));
    let mut lines: Vec<String> = state.rows.values().map(|row| show(row)).chain(counted).collect();
    lines.sort();
    lines
}

#[test]
fn what_the_conversions_make_of_a_text_is_the_sources_text_again() {
    for (conversion, text, fits) in TEXTS {
        let mut builder = ColumnBuilder::new(&conversion);
        assert_eq!(builder.append_text(text.as_bytes()).is_ok(), fits, "{conversion} {text}");
        let array = builder.finish();
        let column = super::canonical::Column::new("c", Some(&array), conversion.lake_type()).unwrap();
        let (mut lake, mut source) = (Vec::new(), Vec::new());
        if fits {
            column.push(0, &mut lake, &mut String::new());
        } else {
            push(&mut lake, Cell::Exception(text.as_bytes()));
        }
        push_source(&mut source, &conversion, None, text.as_bytes());
        assert_eq!(cells(&lake).next(), cells(&source).next(), "{conversion} {text}");
    }
}

#[test]
fn values_that_differ_have_different_texts() {
    let text = |conversion: Conversion, raw: &str| {
        let mut row = Vec::new();
        push_source(&mut row, &conversion, None, raw.as_bytes());
        row
    };
    assert_ne!(text(Conversion::Double, "0"), text(Conversion::Double, "-0"));
    assert_ne!(text(Conversion::Decimal38_9, "0.1"), text(Conversion::Decimal38_9, "-0.1"));
    assert_eq!(text(Conversion::Decimal38_9, "-0.0"), text(Conversion::Decimal38_9, "0"));
    assert_ne!(text(Conversion::Text, "1"), text(Conversion::Text, "1.0"));
}

#[test]
fn hashes_are_compared_by_the_key() {
    let key = HashKey::new(b"0123456789abcdef");
    let mut row = Vec::new();
    push_source(&mut row, &Conversion::Hashed, Some(&key), b"8001");
    assert_eq!(cells(&row).next(), Some(Cell::Value(&key.hex(b"8001"))));
}

#[test]
fn text_that_is_not_utf8_is_an_exception_in_hex() {
    let mut row = Vec::new();
    push_source(&mut row, &Conversion::Text, None, b"a\xf1");
    assert_eq!(cells(&row).next(), Some(Cell::Exception(b"\\x61f1")));
}

#[test]
fn the_last_row_of_a_key_wins_whatever_the_order_of_files() {
    let rows = [row("UPDATE", 20, 1, 1, "b"), row("INSERT", 10, 1, 1, "a"), row("INSERT", 10, 2, 2, "x"), row("DELETE", 30, 1, 2, "")];
    assert_eq!(lines(&state(&rows, &[0])), ["1 b"]);
}

#[test]
fn truncate_counts_for_all_keys_and_a_copy_is_a_truncate_with_rows() {
    let truncate = |lsn, seq| Row { op: "TRUNCATE", lsn, seq, ..Row::default() };
    let rows = [row("INSERT", 10, 1, 1, "old"), truncate(20, -1), row("SNAPSHOT", 20, 0, 2, "copied"), row("UPDATE", 20, 1, 2, "after")];
    assert_eq!(lines(&state(&rows, &[0])), ["2 after"]);
    assert_eq!(lines(&state(&[row("INSERT", 10, 1, 1, "a"), truncate(10, 2)], &[0])), Vec::<String>::new());
}

#[test]
fn columns_left_out_come_from_the_row_before_with_their_exceptions() {
    let first = Row { text: None, exceptions: Some(r#"{"text":"\\xff"}"#), ..row("INSERT", 10, 1, 1, "") };
    let second = Row { text: None, unchanged: Some(r#"["text"]"#), ..row("UPDATE", 20, 1, 1, "") };
    assert_eq!(lines(&state(&[first, second], &[0])), ["1 !\\xff"]);
    assert_eq!(lines(&state(&[second], &[0])), ["1 ?"]);
}

#[test]
fn a_changed_key_takes_what_was_left_out_from_the_old_key() {
    let moved = Row { text: None, unchanged: Some(r#"["text"]"#), old_key: Some(r#"{"id":1}"#), ..row("UPDATE", 20, 3, 2, "") };
    let rows = [row("INSERT", 10, 1, 1, "toast"), row("DELETE", 20, 2, 1, ""), moved];
    assert_eq!(lines(&state(&rows, &[0])), ["2 toast"]);
}

#[test]
fn without_a_key_rows_are_counted() {
    let rows = [row("INSERT", 10, 1, 1, "a"), row("INSERT", 10, 2, 1, "a"), row("DELETE", 20, 1, 1, "a"), row("UPDATE", 20, 2, 1, "b")];
    assert_eq!(lines(&state(&rows, &[])), ["1 a x1", "1 b x1"]);
}

#[test]
fn a_change_that_stands_twice_is_found() {
    let twice = [row("INSERT", 10, 1, 1, "a"), row("INSERT", 10, 1, 1, "a")];
    assert_eq!(state(&twice, &[0]).duplicates, 1);
    assert_eq!(state(&twice, &[]).duplicates, 1);
    let copied = [row("SNAPSHOT", 10, 0, 1, "a"), row("SNAPSHOT", 10, 0, 2, "a"), row("SNAPSHOT", 10, 0, 2, "a")];
    assert_eq!(state(&copied, &[0]).duplicates, 1);
}

#[test]
fn only_rows_of_the_window_count() {
    let rows =
        [row("INSERT", 9, 1, 1, "void"), row("SNAPSHOT", 10, 0, 2, "a"), row("INSERT", 19, 5, 3, "b"), row("INSERT", 20, 1, 4, "later")];
    let left = read(&rows, &two_columns(&[0]), &Partition::default(), Some(10), 20);
    assert_eq!(lines(&reduce(left, true)), ["2 a", "3 b"]);
    let copied_at_the_point = [row("SNAPSHOT", 20, 0, 1, "a")];
    assert_eq!(read(&copied_at_the_point, &two_columns(&[0]), &Partition::default(), Some(20), 20).len(), 1);
}

#[test]
fn a_column_that_a_file_does_not_have_is_null_and_one_of_another_type_is_refused() {
    let wide = shape(&[("id", Conversion::Int64), ("text", Conversion::Text), ("added", Conversion::Date)], &[0]);
    let all = read(&[row("INSERT", 10, 1, 1, "a")], &wide, &Partition::default(), None, 1000);
    assert_eq!(lines(&reduce(all, true)), ["1 a NULL"]);
    let wrong = shape(&[("id", Conversion::Date)], &[0]);
    let refused = changes(&batch(&[row("INSERT", 10, 1, 1, "a")]), &wrong, window(None, Lsn(1000)), &Partition::default(), &mut |_| {});
    assert!(refused.unwrap_err().to_string().contains("column id is Int64"));
}

#[test]
fn partitions_share_the_keys_and_joined_keys_lie_together() {
    let keys: Vec<Vec<u8>> = (0..100u8).map(|n| vec![n]).collect();
    let mut partition = Partition { of: 3, ..Partition::default() };
    partition.link(&keys[1], &keys[0]);
    partition.link(&keys[2], &keys[1]);
    partition.link(&keys[0], &keys[2]);
    let of = |key: &[u8], partition: &mut Partition| -> Vec<u64> {
        (0..3)
            .filter(|number| {
                partition.number = *number;
                partition.has(key)
            })
            .collect()
    };
    for key in &keys {
        assert_eq!(of(key, &mut partition).len(), 1);
    }
    assert_eq!(of(&keys[0], &mut partition), of(&keys[2], &mut partition));
}

#[test]
fn a_report_names_row_column_and_both_values_shortened() {
    let shape = two_columns(&[0]);
    let [a, b] = ["1\tuno", "1\tdos"].map(|line| source_row(line.as_bytes(), &shape, None).unwrap());
    let mut report = Report::new(true);
    report.compare(&shape, &a, &a);
    assert!(report.is_equal());
    report.compare(&shape, &a, &b);
    report.missing(&shape, &source_row(format!("2\t{}", "x".repeat(100)).as_bytes(), &shape, None).unwrap(), 1);
    for _ in 0..100 {
        report.extra(&shape, &b, 1);
    }
    let lines = report.lines(&TableName::new("public", "t"), Lsn(16));
    assert_eq!(lines[0], r#"public.t: id = "1", column text: lake "uno", source "dos""#);
    assert_eq!(lines[1], r#"public.t: missing in the lake: id = "2""#);
    assert_eq!(lines.len(), 21);
    assert!(lines[20].contains("1 rows differ, 1 are missing in the lake, 100 are not at the source"), "{}", lines[20]);
    assert!(source_row(b"1", &shape, None).is_none() && source_row(b"1\t2\t3", &shape, None).is_none());
}
