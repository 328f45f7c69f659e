//! A table's past as folding looks at it: the keys and places of its rows, in bounded passes.
//!
//! Owns: which days are past, the horizon, the digest of a key, the passes over the files. Does not own: the rule (`fold`).
//! Invariants: only rows below every row of a younger day, and below the published cut, are ever dropped, so that whatever makes a row void
//! is visible wherever the row was; a table without a key is left alone.

pub(crate) use super::fold::Key;
use super::fold::{Columns, Demand, Event, Op, answer, settle};
use super::input::{Reader, Rows, fetch};
use super::plan::{Group, by_day};
use super::rewrite::{Bits, Edit, Work, blocking};
use crate::error::{Error, Result};
use crate::lake::{LiveFile, Position, day_of};
use crate::lsn::Lsn;
use crate::schema::version::{METADATA, TableSchema};
use crate::store::Store;
use arrow_array::cast::AsArray;
use arrow_array::types::{Date32Type, Decimal128Type, Decimal256Type, Float32Type, Float64Type, Int64Type, TimestampMicrosecondType};
use arrow_array::{Array, ArrayRef, StringArray};
use arrow_schema::{DataType, Schema, SchemaRef};
use sha2::{Digest, Sha256};
use std::collections::HashMap;
use std::sync::Arc;

/// Rows whose keys are held at once: about 100 bytes each.
const ROWS_PER_PASS: u64 = 2_000_000;
/// Files are read one after the other.
const FETCH_BUDGET: u64 = 8 << 20;
/// The past is read anew only once this part of it has come to it since the last time: so each byte is read a few times in all.
const NEW_PART: u64 = 10;

/// What is rewritten of a table.
pub(super) struct Plan {
    pub(super) groups: Vec<Group>,
    /// What becomes of their rows, by path.
    pub(super) edits: Arc<HashMap<String, Edit>>,
    /// Rows at or above stay as they are: who has some is looked at again.
    pub(super) horizon: Lsn,
}

/// Looks at the days before `before`; `None` if there is nothing worth doing.
pub(super) async fn plan(
    work: &Work,
    live: &[LiveFile],
    schema: &Arc<TableSchema>,
    before: &str,
    cut: Option<Lsn>,
) -> Result<Option<Plan>> {
    let of_table = |live: &&LiveFile| live.file.table == schema.table && live.file.version == schema.version;
    let (old, young): (Vec<LiveFile>, Vec<LiveFile>) =
        live.iter().filter(of_table).cloned().partition(|live| day_of(&live.file.path).is_some_and(|day| day < before));
    let bytes = |files: &mut dyn Iterator<Item = &LiveFile>| files.map(|live| live.file.bytes).sum::<u64>();
    let new = bytes(&mut old.iter().filter(|live| !live.folded));
    if schema.key.is_empty() || new == 0 || new < bytes(&mut old.iter()) / NEW_PART {
        return Ok(None);
    }
    let horizon = young.iter().map(LiveFile::lowest).chain(cut).min().unwrap_or(Lsn(u64::MAX));
    let pass = Pass { work, schema, files: &old, horizon };
    let mut keep: Vec<Bits> = vec![Bits::default(); old.len()];
    let survey = pass.survey(&mut keep).await?;
    let mut edits: Vec<Edit> = keep.into_iter().map(|keep| Edit { keep, reduce: Bits::default() }).collect();
    let mut keep = |event: &Event| {
        let (file, row) = event.place;
        let edit = &mut edits[file as usize];
        edit.keep.set(row as usize);
        // Under REPLICA IDENTITY FULL it holds the whole row that it removed. Those of folded files were reduced then.
        if event.op == Op::Delete && !old[file as usize].folded {
            edit.reduce.set(row as usize);
        }
    };
    let passes = old.iter().map(|live| live.file.rows).sum::<u64>().div_ceil(ROWS_PER_PASS).max(1);
    let part = move |key: &Key| (u64::from(key[0]) + 256 * u64::from(key[1])) % passes;
    let mut demands: Vec<Demand> = Vec::new();
    for number in 0..passes {
        let keys = pass.events(survey.floor, move |key| part(key) == number).await?;
        demands.extend(settle(&keys, &mut keep));
    }
    while !demands.is_empty() {
        let asked: Vec<(Key, Demand)> =
            std::mem::take(&mut demands).into_iter().filter_map(|demand| Some((*survey.deletes.get(&demand.delete)?, demand))).collect();
        for number in (0..passes).filter(|number| asked.iter().any(|(key, _)| part(key) == *number)) {
            let keys = pass.events(survey.floor, move |key| part(key) == number).await?;
            demands.extend(answer(&keys, &asked, &mut keep));
        }
    }
    let edits = old.iter().map(|live| live.file.path.clone()).zip(edits).collect();
    Ok(Some(Plan { groups: by_day(old.iter()), edits: Arc::new(edits), horizon }))
}

/// What must be known of all rows before any is decided on.
struct Survey {
    /// The last TRUNCATE below the horizon.
    floor: Option<Position>,
    /// Position of a DELETE that a change of key wrote → its key; where the changed row left columns out.
    deletes: HashMap<Position, Key>,
}

/// Reads the files from end to end.
struct Pass<'a> {
    work: &'a Work,
    schema: &'a Arc<TableSchema>,
    files: &'a [LiveFile],
    /// Rows at or above stay as they are.
    horizon: Lsn,
}

impl Pass<'_> {
    async fn each<T, F>(&self, state: T, take: F) -> Result<T>
    where
        T: Send + 'static,
        F: Fn(&mut T, u32, u32, &Row<'_>, usize) -> Result<()> + Send + Sync + Copy + 'static,
    {
        each_row(&self.work.store, self.schema, self.files, looked_at(self.schema, &[]), state, take).await
    }

    /// The floor, the keys of DELETEs that may be asked for, and the rows above the horizon, which stay.
    async fn survey(&self, keep: &mut Vec<Bits>) -> Result<Survey> {
        type Found = (Vec<Bits>, Lsn, Option<(Position, (u32, u32))>, HashMap<Position, Option<Key>>);
        let start: Found = (std::mem::take(keep), self.horizon, None, HashMap::new());
        let take = |found: &mut Found, file: u32, number: u32, row: &Row<'_>, at: usize| {
            let position = row.rows.position(at);
            let op = row.op.value(at);
            if position.0 >= found.1 {
                found.0[file as usize].set(number as usize);
            } else if op == "TRUNCATE" && found.2.is_none_or(|(floor, _)| floor < position) {
                found.2 = Some((position, (file, number)));
            } else if op == "UPDATE" && row.old_key.is_valid(at) && row.unchanged.is_valid(at) {
                found.3.insert((position.0, position.1 - 1), None);
            }
            Ok(())
        };
        let (bits, horizon, floor, wanted) = self.each(start, take).await?;
        *keep = bits;
        if let Some((_, (file, row))) = floor {
            keep[file as usize].set(row as usize);
        }
        let mut deletes = HashMap::new();
        if !wanted.is_empty() {
            let take = |found: &mut Found, _: u32, _: u32, row: &Row<'_>, at: usize| {
                if row.op.value(at) == "DELETE"
                    && let Some(key) = found.3.get_mut(&row.rows.position(at))
                {
                    *key = Some(row.key(at)?);
                }
                Ok(())
            };
            let (_, _, _, found) = self.each((Vec::new(), horizon, None, wanted), take).await?;
            deletes = found.into_iter().filter_map(|(at, key)| Some((at, key?))).collect();
        }
        Ok(Survey { floor: floor.map(|(position, _)| position), deletes })
    }

    /// The rows of some keys between the floor and the horizon, each key's in their order.
    async fn events(
        &self,
        floor: Option<Position>,
        mine: impl Fn(&Key) -> bool + Copy + Send + Sync + 'static,
    ) -> Result<HashMap<Key, Vec<Event>>> {
        type Found = (HashMap<Key, Vec<Event>>, Option<Position>, Lsn);
        let take = move |found: &mut Found, file: u32, number: u32, row: &Row<'_>, at: usize| {
            let position = row.rows.position(at);
            let op = match row.op.value(at) {
                "INSERT" | "SNAPSHOT" => Op::Put,
                "UPDATE" => Op::Update,
                "DELETE" => Op::Delete,
                _ => return Ok(()),
            };
            if position.0 >= found.2 || found.1.is_some_and(|floor| position <= floor) {
                return Ok(());
            }
            let key = row.key(at)?;
            if mine(&key) {
                let unchanged = if op == Op::Update { row.left_out(at)? } else { Columns::new() };
                let event = Event { position, op, moved: row.old_key.is_valid(at), unchanged, place: (file, number) };
                found.0.entry(key).or_default().push(event);
            }
            Ok(())
        };
        let (mut keys, _, _) = self.each((HashMap::new(), floor, self.horizon), take).await?;
        keys.values_mut().for_each(|events| events.sort_by_key(|event| event.position));
        Ok(keys)
    }
}

/// Reads files of one version from end to end. Calls `take` with each file's number, the row's number in it, and the row's batch and place there.
pub(crate) async fn each_row<T, F>(
    store: &Arc<dyn Store>,
    schema: &Arc<TableSchema>,
    files: &[LiveFile],
    columns: SchemaRef,
    mut state: T,
    take: F,
) -> Result<T>
where
    T: Send + 'static,
    F: Fn(&mut T, u32, u32, &Row<'_>, usize) -> Result<()> + Send + Sync + Clone + 'static,
{
    let mut feed = fetch(Arc::clone(store), files.to_vec(), FETCH_BUDGET);
    for number in 0..files.len() {
        let fetched = feed.recv().await.ok_or_else(|| Error::bug("fetching ended early"))??;
        let (schema, columns, take) = (Arc::clone(schema), Arc::clone(&columns), take.clone());
        state = blocking(move || {
            let mut reader = Reader::open(fetched, &schema, &columns)?;
            let mut before = 0;
            while let Some(rows) = reader.next()? {
                let row = Row::of(&rows, &schema)?;
                for at in 0..rows.len() {
                    take(&mut state, number as u32, before + at as u32, &row, at)?;
                }
                before += rows.len() as u32;
            }
            Ok(state)
        })
        .await?;
    }
    Ok(state)
}

/// The key's columns, those of ours that say what a row does, and `more`.
pub(crate) fn looked_at(schema: &TableSchema, more: &[String]) -> SchemaRef {
    let own = ["_op", "_commit_lsn", "_seq", "_unchanged", "_old_key", "_exceptions"];
    debug_assert!(own.iter().all(|name| METADATA.contains(name)));
    let all = schema.arrow();
    let wanted = |name: &str| own.contains(&name) || schema.key.iter().chain(more).any(|column| column == name);
    Arc::new(Schema::new(all.fields().iter().filter(|field| wanted(field.name())).cloned().collect::<Vec<_>>()))
}

/// A batch's columns as folding looks at them.
pub(crate) struct Row<'a> {
    rows: &'a Rows,
    schema: &'a TableSchema,
    key: Vec<(&'a str, &'a ArrayRef)>,
    op: &'a StringArray,
    unchanged: &'a StringArray,
    old_key: &'a StringArray,
    exceptions: &'a StringArray,
}

impl<'a> Row<'a> {
    fn of(rows: &'a Rows, schema: &'a TableSchema) -> Result<Self> {
        let column =
            |name: &str| rows.rows.column_by_name(name).ok_or_else(|| Error::bug(format!("{}: column {name} was not read", schema.table)));
        let text = |name: &str| {
            column(name)?.as_string_opt::<i32>().ok_or_else(|| Error::lake(format!("{}: column {name} is no text", schema.table)))
        };
        let op = text("_op")?;
        if op.null_count() > 0 {
            return Err(Error::lake(format!("{}: a row has no _op", schema.table)));
        }
        Ok(Self {
            rows,
            schema,
            key: schema.key.iter().map(|name| Ok((name.as_str(), column(name)?))).collect::<Result<_>>()?,
            op,
            unchanged: text("_unchanged")?,
            old_key: text("_old_key")?,
            exceptions: text("_exceptions")?,
        })
    }

    /// `(_commit_lsn, _seq)`.
    pub(crate) fn position(&self, at: usize) -> Position {
        self.rows.position(at)
    }

    /// `_op`.
    pub(crate) fn op(&self, at: usize) -> &str {
        self.op.value(at)
    }

    /// Whether it is the second row of a change of key.
    pub(crate) fn is_moved(&self, at: usize) -> bool {
        self.old_key.is_valid(at)
    }

    /// Whether it holds nothing but its key and its place, as far as it was read.
    pub(crate) fn is_reduced(&self, at: usize) -> bool {
        self.rows.is_reduced(at, self.schema)
    }

    /// Digest of the key.
    pub(crate) fn key(&self, at: usize) -> Result<Key> {
        self.digest(&self.key, at)
    }

    /// Digest of the cells of some columns, as [`Row::key`] is of the key's; `None` if the row leaves one out.
    pub(crate) fn digest_of(&self, names: &[String], at: usize) -> Result<Option<Key>> {
        let left_out: Vec<String> = self.json("_unchanged", self.unchanged, at)?.unwrap_or_default();
        if names.iter().any(|name| left_out.contains(name)) {
            return Ok(None);
        }
        let mut columns: Vec<(&str, &ArrayRef)> = Vec::with_capacity(names.len());
        for name in names {
            let column = self.rows.rows.column_by_name(name);
            let column = column.ok_or_else(|| Error::bug(format!("{}: column {name} was not read", self.schema.table)))?;
            columns.push((name, column));
        }
        self.digest(&columns, at).map(Some)
    }

    /// Of each column its value, or its NULL, or the text that its type could not hold.
    fn digest(&self, columns: &[(&str, &ArrayRef)], at: usize) -> Result<Key> {
        let exceptions: HashMap<String, String> = self.json("_exceptions", self.exceptions, at)?.unwrap_or_default();
        let mut digest = Digester::default();
        for (name, array) in columns {
            digest.add(exceptions.get(*name).map(String::as_str), array, at)?;
        }
        Ok(digest.key())
    }

    /// Numbers of the columns that `_unchanged` names.
    fn left_out(&self, at: usize) -> Result<Columns> {
        let names: Vec<String> = self.json("_unchanged", self.unchanged, at)?.unwrap_or_default();
        let number = |name: &String| {
            let found = self.schema.columns.iter().position(|column| column.name == *name);
            found.map(|at| at as u16).ok_or_else(|| {
                Error::lake(format!("{}: _unchanged names column {name}, which its schema document lacks", self.schema.table))
            })
        };
        names.iter().map(number).collect()
    }

    fn json<T: serde::de::DeserializeOwned>(&self, name: &str, column: &StringArray, at: usize) -> Result<Option<T>> {
        if column.is_null(at) {
            return Ok(None);
        }
        // The cause would show a piece of the cell.
        let value = serde_json::from_str(column.value(at));
        value.map(Some).map_err(|_| Error::lake(format!("{}: a row's {name} is not the JSON it should be", self.schema.table)))
    }
}

/// Digests the cells of a key, one after the other.
#[derive(Default)]
pub(crate) struct Digester(Sha256);

impl Digester {
    /// Adds the cell `at` of a column, or the text that its type could not hold.
    pub(crate) fn add(&mut self, exception: Option<&str>, array: &ArrayRef, at: usize) -> Result<()> {
        let (tag, bytes) = match (exception, array.is_valid(at)) {
            (Some(text), _) => (2u8, text.as_bytes().to_vec()),
            (None, true) => (1, cell(array, at)?),
            (None, false) => (0, Vec::new()),
        };
        self.0.update([tag]);
        self.0.update((bytes.len() as u64).to_le_bytes());
        self.0.update(bytes);
        Ok(())
    }

    /// The digest.
    pub(crate) fn key(self) -> Key {
        let mut key = Key::default();
        key.copy_from_slice(&self.0.finalize()[..16]);
        key
    }
}

/// A cell's bytes: equal exactly for equal cells of a column.
fn cell(array: &ArrayRef, at: usize) -> Result<Vec<u8>> {
    Ok(match array.data_type() {
        DataType::Boolean => vec![u8::from(array.as_boolean().value(at))],
        DataType::Int64 => array.as_primitive::<Int64Type>().value(at).to_le_bytes().to_vec(),
        DataType::Float32 => array.as_primitive::<Float32Type>().value(at).to_bits().to_le_bytes().to_vec(),
        DataType::Float64 => array.as_primitive::<Float64Type>().value(at).to_bits().to_le_bytes().to_vec(),
        DataType::Decimal128(..) => array.as_primitive::<Decimal128Type>().value(at).to_le_bytes().to_vec(),
        DataType::Decimal256(..) => array.as_primitive::<Decimal256Type>().value(at).to_le_bytes().to_vec(),
        DataType::Utf8 => array.as_string::<i32>().value(at).as_bytes().to_vec(),
        DataType::Binary => array.as_binary::<i32>().value(at).to_vec(),
        DataType::Date32 => array.as_primitive::<Date32Type>().value(at).to_le_bytes().to_vec(),
        DataType::Timestamp(..) => array.as_primitive::<TimestampMicrosecondType>().value(at).to_le_bytes().to_vec(),
        other => return Err(Error::bug(format!("no column of the lake is {other}"))),
    })
}
