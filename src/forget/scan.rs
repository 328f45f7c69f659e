//! The rows of some keys, found in all files of a table.
//!
//! Owns: passes over the files, what is kept of a row. Does not own: whose rows they are (`trace`). Invariants: memory is the rows of the keys that
//! are looked for, and the files fetched ahead; what a pass finds is complete for the keys that it was asked for.

use super::target::Seed;
use super::trace::{Event, Half, History, Node, Op, Wanted};
use crate::compact::keys::{Key, each_row, looked_at};
use crate::compact::removal::Versions;
use crate::error::Result;
use crate::lake::{LiveFile, Position};
use crate::schema::version::SchemaColumn;
use crate::store::Store;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;

/// All rows of versions without a key have this one.
const NO_KEY: Key = [0; 16];

/// A table's files by version, in the order that places count.
pub(super) type Files = BTreeMap<u32, Vec<LiveFile>>;

/// What is looked for in a version.
struct Query {
    /// In the first pass: rows with these cells, and every TRUNCATE.
    seed: Option<Seed>,
    first: bool,
    keyless: bool,
    watched: HashSet<Key>,
    wanted: HashSet<(Position, Half)>,
}

#[derive(Default)]
struct Found {
    rows: Vec<(Key, Event)>,
    floors: Vec<Position>,
}

/// Reads everything once: the rows asked for, the TRUNCATEs.
pub(super) async fn first(
    store: &Arc<dyn Store>,
    versions: &Versions,
    files: &Files,
    seeds: &BTreeMap<u32, Seed>,
) -> Result<(History, Vec<(u32, Event)>)> {
    let mut history = History::default();
    let mut loose = Vec::new();
    let mut before: Option<u32> = None;
    for (version, schema) in versions {
        let keyless = schema.key.is_empty();
        let seed = seeds.get(version).cloned();
        let query = Query { seed: seed.clone(), first: true, keyless, watched: HashSet::new(), wanted: HashSet::new() };
        let found = pass(store, versions, *version, files.get(version).map_or(&[], Vec::as_slice), query).await?;
        let mut floors = found.floors;
        floors.sort_unstable();
        history.floors.insert(*version, floors);
        if keyless {
            loose.extend(found.rows.into_iter().map(|(_, event)| (*version, event)));
        } else {
            take(&mut history, *version, found.rows);
            if let Some(seed) = seed.filter(|seed| seed.columns == schema.key) {
                history.complete.insert((*version, seed.digest));
            }
        }
        if before.is_some_and(|before| same_key(versions, before, *version)) {
            history.same_key.insert(*version);
        }
        before = Some(*version);
    }
    Ok((history, loose))
}

/// Reads again for keys and places that `trace` asked for.
pub(super) async fn again(
    store: &Arc<dyn Store>,
    versions: &Versions,
    files: &Files,
    history: &mut History,
    wanted: &BTreeSet<Wanted>,
    watched: &BTreeSet<Node>,
) -> Result<()> {
    for version in versions.keys() {
        let keys: HashSet<Key> = watched.iter().filter(|(of, _)| of == version).map(|(_, key)| *key).collect();
        let places: HashSet<(Position, Half)> = wanted.iter().filter(|(of, ..)| of == version).map(|(_, at, half)| (*at, *half)).collect();
        if keys.is_empty() && places.is_empty() {
            continue;
        }
        let all = files.get(version).map_or(&[][..], Vec::as_slice);
        let may_hold = |live: &LiveFile| !keys.is_empty() || places.iter().any(|(at, _)| live.lowest() <= at.0 && live.reaches(at.0));
        let numbers: Vec<u32> = (0..all.len()).filter(|at| may_hold(&all[*at])).map(|at| at as u32).collect();
        let some: Vec<LiveFile> = numbers.iter().map(|at| all[*at as usize].clone()).collect();
        let query = Query { seed: None, first: false, keyless: false, watched: keys.clone(), wanted: places };
        let mut found = pass(store, versions, *version, &some, query).await?.rows;
        found.iter_mut().for_each(|(_, event)| event.place.0 = numbers[event.place.0 as usize]);
        take(history, *version, found);
        history.complete.extend(keys.into_iter().map(|key| (*version, key)));
    }
    Ok(())
}

/// Adds rows to a history; one that is there already keeps that it is ours.
fn take(history: &mut History, version: u32, rows: Vec<(Key, Event)>) {
    let mut by_key: HashMap<Key, Vec<Event>> = HashMap::new();
    for (key, event) in rows {
        by_key.entry(key).or_default().push(event);
    }
    for (key, new) in by_key {
        let events = history.nodes.entry((version, key)).or_default();
        let mut all: BTreeMap<(Position, (u32, u32)), Event> =
            events.drain(..).map(|event| ((event.position, event.place), event)).collect();
        for event in new {
            let ours = all.get(&(event.position, event.place)).is_some_and(|known| known.ours);
            all.insert((event.position, event.place), Event { ours: event.ours || ours, ..event });
        }
        events.extend(all.into_values());
    }
}

async fn pass(store: &Arc<dyn Store>, versions: &Versions, version: u32, files: &[LiveFile], query: Query) -> Result<Found> {
    let schema = &versions[&version];
    let more = query.seed.as_ref().map(|seed| seed.columns.clone()).unwrap_or_default();
    let query = Arc::new(query);
    each_row(store, schema, files, looked_at(schema, &more), Found::default(), move |found: &mut Found, file, number, row, at| {
        let position = row.position(at);
        let op = match row.op(at) {
            "INSERT" => Op::Put,
            "SNAPSHOT" => Op::Copied,
            "DELETE" => Op::Delete,
            "UPDATE" if row.is_moved(at) => Op::Moved,
            "UPDATE" => Op::Update,
            _ => {
                if query.first {
                    found.floors.push(position);
                }
                return Ok(());
            }
        };
        let asked = match &query.seed {
            Some(seed) => row.digest_of(&seed.columns, at)? == Some(seed.digest),
            None => false,
        };
        let wanted = Half::of(op).is_some_and(|half| query.wanted.contains(&(position, half)));
        if !asked && !wanted && query.watched.is_empty() {
            return Ok(());
        }
        let key = if query.keyless { NO_KEY } else { row.key(at)? };
        if asked || wanted || query.watched.contains(&key) {
            found.rows.push((key, Event { position, op, place: (file, number), ours: asked || wanted }));
        }
        Ok(())
    })
    .await
}

/// Whether equal digests of keys are equal keys in both versions.
fn same_key(versions: &Versions, one: u32, other: u32) -> bool {
    let form = |version: u32| {
        let schema = &versions[&version];
        let column = |name: &String| schema.columns.iter().find(|column| column.name == *name);
        let of = |c: &SchemaColumn| (c.source.clone(), c.lake_type, c.hashed.then(|| schema.hash_key.clone()));
        schema.key.iter().map(|name| column(name).map(of)).collect::<Option<Vec<_>>>()
    };
    form(one).is_some_and(|key| !key.is_empty() && Some(key) == form(other))
}
