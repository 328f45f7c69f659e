//! What arrives between two cuts: transactions, their ordinals, their rows by table.
//!
//! Owns: `_seq`, the position, the split of a cut into whole transactions and the one that is arriving.
//! Does not own: timers (`replicate`). Invariants: an ordinal depends on the wire alone; the position never
//! goes back, and never enters an arriving transaction; nothing is cut while a position that the wire has claimed lies beyond the
//! WAL that the server is known to have.

use super::table::{SealedTable, TableBatch, Transaction};
use crate::error::{Error, Result};
use crate::lake::{FileKind, TransactionMark, date, rfc3339};
use crate::lsn::Lsn;
use crate::pgoutput::{Begin, Commit, OldTuple, Tuple};
use crate::schema::HashKey;
use crate::schema::version::{Layout, TableSchema};
use crate::table_name::TableName;
use std::sync::Arc;
use std::time::Instant;

/// Where the rows of a relation go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Target(usize);

/// Rows on their way to the lake.
#[derive(Debug, Default)]
pub struct Piece {
    /// Rows by table.
    pub tables: Vec<SealedTable>,
    /// With this piece everything below is there; `None`: a part of a transaction that goes on.
    pub through: Option<Lsn>,
    /// Complete transactions in it.
    pub transactions: u64,
    /// Rows in it.
    pub rows: u64,
    /// The last complete transaction, of this piece or before.
    pub last: Option<LastTransaction>,
}

/// A complete transaction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LastTransaction {
    /// LSN of its commit record.
    pub commit_lsn: Lsn,
    /// Transaction id.
    pub xid: u32,
    /// Commit time, microseconds since 1970-01-01 UTC.
    pub commit_time_us: i64,
}

impl LastTransaction {
    /// As the watermark keeps it.
    pub fn mark(&self) -> TransactionMark {
        TransactionMark { commit_lsn: self.commit_lsn, xid: self.xid, commit_time: rfc3339(self.commit_time_us) }
    }
}

/// What a stream that begins below the watermark must send again.
#[derive(Debug)]
pub struct Replay {
    /// The last transaction that the lake has.
    pub last: TransactionMark,
    /// The slot stands before it, so that it has to come.
    pub due: bool,
}

struct Entry {
    schema: Arc<TableSchema>,
    layout: Arc<Layout>,
    open: Option<TableBatch>,
}

struct Arriving {
    tx: Transaction,
    date: String,
    next_seq: i64,
    /// Its commit lies below the watermark: it is in the lake already.
    known: bool,
    touched: Vec<usize>,
}

fn diverged(last: &TransactionMark, instead: Option<&TransactionMark>) -> Error {
    let sent =
        instead.map_or_else(|| "nothing".to_owned(), |t| format!("transaction {} (commit {}, {})", t.xid, t.commit_lsn, t.commit_time));
    Error::source_refused(format!(
        "the server does not send again what the lake has: after transaction {} (commit {}, {}) it sends {sent}. It was restored to an earlier \
         point and has gone on from there, or it had left out changes while the publication was edited. Run `huella run --resnapshot`: it copies \
         every table; history is kept",
        last.xid, last.commit_lsn, last.commit_time
    ))
}

/// What a server that keeps to the protocol does not send. The session ends, and another one is sent the same in order.
fn broken(what: impl std::fmt::Display) -> Error {
    Error::retry(format!("the server broke the protocol: {what}; nothing after the watermark is acknowledged"))
}

/// Collects rows until they are cut.
pub struct Batcher {
    hash_key: Option<HashKey>,
    limit_bytes: usize,
    entries: Vec<Entry>,
    shut: Vec<TableBatch>,
    arriving: Option<Arriving>,
    bytes: usize,
    start: Lsn,
    /// No commit record can lie below: the stream's beginning, then the end of the last transaction.
    floor: Lsn,
    position: Lsn,
    cut_position: Lsn,
    oldest: Option<Instant>,
    transactions: u64,
    last: Option<LastTransaction>,
    replay: Option<Replay>,
    /// Rows of the transaction that is arriving, or has just arrived, were cut before.
    spilled: bool,
    torn: Option<Torn>,
}

/// A row that came without all of its values, which no later message brings.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Torn {
    /// Its table.
    pub table: TableName,
    /// Commit LSN of its transaction.
    pub commit_lsn: Lsn,
    /// What was left out and when that happens, for people.
    pub reason: &'static str,
}

impl Batcher {
    /// Begins at `through`; transactions whose commit lies below it are compared with `replay` and discarded. None can lie below `stream`, where
    /// the slot's stream begins. `limit_bytes` is what may be buffered.
    pub fn new(through: Lsn, stream: Lsn, replay: Option<Replay>, limit_bytes: usize, hash_key: Option<HashKey>) -> Self {
        Self {
            floor: stream,
            hash_key,
            limit_bytes,
            entries: Vec::new(),
            shut: Vec::new(),
            arriving: None,
            bytes: 0,
            start: through,
            position: through,
            cut_position: through,
            oldest: None,
            transactions: 0,
            last: None,
            replay,
            spilled: false,
            torn: None,
        }
    }

    /// A row that came torn since this was last asked.
    pub fn take_torn(&mut self) -> Option<Torn> {
        self.torn.take()
    }

    /// A relation with this shape; its rows so far under another shape stay where they are.
    pub fn register(&mut self, schema: Arc<TableSchema>, layout: Arc<Layout>) -> Target {
        self.entries.push(Entry { schema, layout, open: None });
        Target(self.entries.len() - 1)
    }

    /// BEGIN.
    pub fn begin(&mut self, begin: &Begin) -> Result<()> {
        if self.arriving.is_some() {
            return Err(broken("BEGIN inside a transaction"));
        }
        if begin.final_lsn < self.floor {
            return Err(broken(format_args!("a transaction with commit {} came after position {}", begin.final_lsn, self.floor)));
        }
        let known = begin.final_lsn < self.start;
        if !known {
            self.settle_replay()?;
        }
        if !known && begin.final_lsn < self.position {
            return Err(broken(format_args!("a transaction with commit {} came after position {}", begin.final_lsn, self.position)));
        }
        self.arriving = Some(Arriving {
            tx: Transaction { commit_lsn: begin.final_lsn, commit_time_us: begin.commit_time_us, xid: Some(begin.xid) },
            date: date(begin.commit_time_us),
            next_seq: 1,
            known,
            touched: Vec::new(),
        });
        Ok(())
    }

    /// What is sent again has to be what was sent before: else the server's history is another one, and what it has put below the
    /// watermark instead would be taken for known. All transactions count, with rows of ours or without: which tables are ours may have changed since.
    fn compare(&mut self, again: LastTransaction) -> Result<()> {
        let Some(replay) = &mut self.replay else { return Ok(()) };
        let mark = again.mark();
        if mark == replay.last {
            replay.due = false;
        } else if mark.commit_lsn >= replay.last.commit_lsn {
            return Err(diverged(&replay.last, Some(&mark)));
        }
        Ok(())
    }

    /// Nothing more is sent again.
    fn settle_replay(&mut self) -> Result<()> {
        match self.replay.take() {
            Some(replay) if replay.due => Err(diverged(&replay.last, None)),
            _ => Ok(()),
        }
    }

    /// Id of the transaction that is arriving.
    pub fn xid(&self) -> Option<u32> {
        self.arriving.as_ref().and_then(|arriving| arriving.tx.xid)
    }

    /// COMMIT: what arrived belongs to the next boundary.
    pub fn commit(&mut self, commit: &Commit) -> Result<()> {
        let done = self.arriving.take().ok_or_else(|| broken("COMMIT outside a transaction"))?;
        if done.tx.commit_lsn != commit.commit_lsn {
            return Err(broken(format_args!("BEGIN announced commit {} and COMMIT says {}", done.tx.commit_lsn, commit.commit_lsn)));
        }
        if commit.end_lsn <= commit.commit_lsn {
            return Err(broken(format_args!("commit {} ends at {}", commit.commit_lsn, commit.end_lsn)));
        }
        self.floor = commit.end_lsn;
        for index in done.touched {
            if let Some(open) = self.entries[index].open.as_mut() {
                open.complete();
            }
        }
        self.shut.iter_mut().for_each(TableBatch::complete);
        let this = done.tx.xid.map(|xid| LastTransaction { commit_lsn: commit.commit_lsn, xid, commit_time_us: commit.commit_time_us });
        if let Some(this) = this.filter(|_| done.known) {
            self.compare(this)?;
        }
        if !done.known {
            self.transactions += 1;
            self.last = this;
            self.position = self.position.max(commit.end_lsn);
        }
        Ok(())
    }

    /// A keepalive's `wal_end`: a position only between transactions.
    pub fn keepalive(&mut self, wal_end: Lsn) -> Result<()> {
        if self.arriving.is_none() {
            if wal_end > self.start {
                self.settle_replay()?;
            }
            self.position = self.position.max(wal_end);
        }
        Ok(())
    }

    /// Whether a transaction is arriving.
    pub fn in_transaction(&self) -> bool {
        self.arriving.is_some()
    }

    /// Commit LSN of the transaction that is arriving.
    pub fn arriving(&self) -> Option<Lsn> {
        self.arriving.as_ref().map(|arriving| arriving.tx.commit_lsn)
    }

    /// Whether the transaction that is arriving is in the lake already.
    pub fn is_known(&self) -> bool {
        self.arriving.as_ref().is_some_and(|arriving| arriving.known)
    }

    /// The highest position that the wire has claimed: what [`cut`](Self::cut) has to be shown to exist.
    pub fn claimed(&self) -> Lsn {
        self.position.max(self.arriving().unwrap_or_default())
    }

    /// Everything below is received completely.
    pub fn position(&self) -> Lsn {
        self.position
    }

    /// Whether the position lies beyond the last cut.
    pub fn moved(&self) -> bool {
        self.position > self.cut_position
    }

    /// Since when rows wait.
    pub fn oldest(&self) -> Option<Instant> {
        self.oldest
    }

    /// Complete transactions that wait for their cut, with or without rows.
    pub fn has_complete(&self) -> bool {
        self.transactions > 0
    }

    /// Whether a complete transaction waits whose first rows are cut already.
    pub fn overdue(&self) -> bool {
        self.spilled && self.arriving.is_none()
    }

    /// What is buffered takes about this much memory.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Whether the buffers are full, or would be with `more` bytes.
    pub fn full(&self, more: usize) -> bool {
        self.bytes > 0 && self.bytes + more >= self.limit_bytes
    }

    /// INSERT. `None`: of a relation that is not replicated, which counts all the same.
    pub fn insert(&mut self, target: Option<Target>, new: Tuple<'_>) -> Result<()> {
        self.change(target, 1, new.wire_bytes(), |batch, tx, seq| batch.insert(tx, seq, new))
    }

    /// UPDATE; with an old tuple it takes two ordinals whatever is written.
    pub fn update(&mut self, target: Option<Target>, old: Option<OldTuple<'_>>, new: Tuple<'_>) -> Result<()> {
        let (ordinals, bytes) = match old {
            Some(old) => (2, new.wire_bytes() + 2 * old.tuple.wire_bytes()),
            None => (1, new.wire_bytes()),
        };
        self.change(target, ordinals, bytes, |batch, tx, seq| batch.update(tx, seq, old, new))
    }

    /// DELETE.
    pub fn delete(&mut self, target: Option<Target>, old: OldTuple<'_>) -> Result<()> {
        self.change(target, 1, old.tuple.wire_bytes(), |batch, tx, seq| batch.delete(tx, seq, old))
    }

    /// TRUNCATE of one of a message's relations.
    pub fn truncate(&mut self, target: Option<Target>) -> Result<()> {
        self.change(target, 1, 0, |batch, tx, seq| {
            batch.truncate(tx, seq);
            Ok(())
        })
    }

    fn change(
        &mut self,
        target: Option<Target>,
        ordinals: i64,
        bytes: usize,
        write: impl FnOnce(&mut TableBatch, &Transaction, i64) -> Result<()>,
    ) -> Result<()> {
        let arriving = self.arriving.as_mut().ok_or_else(|| broken("a change outside a transaction"))?;
        let seq = arriving.next_seq;
        arriving.next_seq += ordinals;
        let Some(Target(index)) = target.filter(|_| !arriving.known) else { return Ok(()) };
        let entry = &mut self.entries[index];
        if entry.open.as_ref().is_some_and(|open| open.date() != arriving.date) {
            self.shut.extend(entry.open.take());
        }
        let open = match &mut entry.open {
            Some(open) => open,
            none => none.insert(TableBatch::new(
                Arc::clone(&entry.schema),
                Arc::clone(&entry.layout),
                arriving.date.clone(),
                FileKind::Stream,
                self.hash_key.as_ref(),
            )?),
        };
        if arriving.touched.last() != Some(&index) && !arriving.touched.contains(&index) {
            arriving.touched.push(index);
        }
        let before = open.rows();
        write(open, &arriving.tx, seq)?;
        if let Some(reason) = open.take_torn() {
            self.torn = Some(Torn { table: entry.schema.table.clone(), commit_lsn: arriving.tx.commit_lsn, reason });
        }
        self.bytes += bytes + (open.rows() - before) * open.row_bytes();
        self.oldest.get_or_insert_with(Instant::now);
        Ok(())
    }

    /// Cuts. The first piece (if any) ends at the position and has all complete transactions; the second (if any)
    /// has the rows so far of the one that is arriving. With `boundary` the first is made even without rows; so it is before the first part
    /// of a transaction, because a boundary that came behind one would name its rows.
    ///
    /// `flushed` is how far the server's WAL goes, as the server says elsewhere than on the stream: one claim beyond it, believed, would
    /// move watermark and slot past changes that are still to come, and acknowledging deletes WAL.
    pub fn cut(&mut self, boundary: bool, flushed: Lsn) -> Result<Vec<Piece>> {
        if self.claimed() > flushed {
            return Err(broken(format_args!("the stream is at {}, beyond the end of its WAL at {flushed}", self.claimed())));
        }
        let mut complete = Piece::default();
        let mut part = Piece::default();
        let open = self.entries.iter_mut().filter_map(|entry| entry.open.take());
        for batch in self.shut.drain(..).chain(open) {
            let (whole, arriving) = batch.seal()?;
            complete.tables.extend(whole);
            part.tables.extend(arriving);
        }
        if let Some(arriving) = self.arriving.as_mut() {
            arriving.touched.clear();
        }
        self.spilled = self.arriving.is_some() && (self.spilled || !part.tables.is_empty());
        self.bytes = 0;
        self.oldest = None;
        let mut pieces = Vec::new();
        let moved = self.position > self.cut_position;
        if !complete.tables.is_empty() || (moved && (boundary || !part.tables.is_empty())) {
            complete.through = Some(self.position);
            complete.transactions = std::mem::take(&mut self.transactions);
            complete.last = self.last;
            self.cut_position = self.position;
            pieces.push(complete);
        }
        if !part.tables.is_empty() {
            pieces.push(part);
        }
        for piece in &mut pieces {
            piece.rows = piece.tables.iter().map(|t| t.rows.num_rows() as u64).sum();
        }
        Ok(pieces)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bare() -> Arc<TableSchema> {
        Arc::new(TableSchema {
            table: TableName::new("public", "t"),
            version: 1,
            oid: 1,
            columns: Vec::new(),
            key: Vec::new(),
            excluded: Vec::new(),
            excluded_names: Default::default(),
            hash_key: None,
        })
    }

    /// Back to back: one's end is the next one's commit record, over a restart as well. Keepalives go backward then.
    #[test]
    fn a_transaction_whose_commit_record_begins_at_through_is_not_in_the_lake_yet() {
        let mut batcher = Batcher::new(Lsn(31), Lsn::ZERO, None, usize::MAX, None);
        let target = Some(batcher.register(bare(), Arc::new(Layout { slots: Vec::new(), key: Vec::new(), absent: Vec::new() })));
        for (commit, end) in [(30, 31), (31, 40), (40, 50)] {
            batcher.keepalive(Lsn(5)).expect("nothing to compare");
            batcher.begin(&Begin { final_lsn: Lsn(commit), commit_time_us: 0, xid: 1 }).expect("outside a transaction");
            batcher.truncate(target).expect("inside one");
            batcher.commit(&Commit { commit_lsn: Lsn(commit), end_lsn: Lsn(end), commit_time_us: 0 }).expect("inside one");
            assert_eq!(batcher.position(), Lsn(end));
        }
        let pieces = batcher.cut(true, Lsn(u64::MAX)).expect("sealed");
        assert_eq!(pieces.iter().map(|piece| (piece.through, piece.rows, piece.transactions)).collect::<Vec<_>>(), [(Some(Lsn(50)), 2, 2)]);
    }

    /// Begin and commit of a transaction that wrote a row, or none.
    fn transaction(batcher: &mut Batcher, target: Option<Target>, (commit, xid): (u64, u32), wrote: bool) -> Result<()> {
        batcher.begin(&Begin { final_lsn: Lsn(commit), commit_time_us: 7, xid })?;
        if wrote {
            batcher.truncate(target)?;
        }
        batcher.commit(&Commit { commit_lsn: Lsn(commit), end_lsn: Lsn(commit + 5), commit_time_us: 7 })
    }

    #[test]
    fn what_is_sent_again_is_what_the_lake_has() {
        let last = || LastTransaction { commit_lsn: Lsn(30), xid: 3, commit_time_us: 7 }.mark();
        let begin = |due| {
            let mut batcher = Batcher::new(Lsn(50), Lsn::ZERO, Some(Replay { last: last(), due }), usize::MAX, None);
            let target = Some(batcher.register(bare(), Arc::new(Layout { slots: Vec::new(), key: Vec::new(), absent: Vec::new() })));
            (batcher, target)
        };
        // The whole of it, and on; a table that is not replicated any more is no reason to doubt.
        for wrote in [true, false] {
            let (mut batcher, target) = begin(true);
            for (at, wrote) in [((20, 2), true), ((30, 3), wrote), ((50, 5), true)] {
                transaction(&mut batcher, target, at, wrote).expect("the same history");
            }
            let pieces = batcher.cut(true, Lsn(u64::MAX)).expect("sealed");
            assert_eq!(pieces.last().and_then(|piece| piece.last).map(|last| (last.commit_lsn, last.xid)), Some((Lsn(50), 5)));
        }
        // Another transaction at its place, one behind it, none at all.
        for other in [(30, 9), (40, 4)] {
            for wrote in [true, false] {
                let (mut batcher, target) = begin(true);
                assert!(transaction(&mut batcher, target, other, wrote).is_err(), "{other:?}");
            }
        }
        let (mut batcher, target) = begin(true);
        assert!(transaction(&mut batcher, target, (50, 5), true).is_err());
        assert!(begin(true).0.keepalive(Lsn(51)).is_err() && begin(true).0.keepalive(Lsn(50)).is_ok());
        // The slot stands behind it: it does not come.
        let (mut batcher, target) = begin(false);
        transaction(&mut batcher, target, (50, 5), true).expect("nothing to compare");
    }

    /// The position moved without a row, then a transaction was cut in its midst: the boundary must not come with the next cut, for it would
    /// stand behind rows that lie beyond it, and name them.
    #[test]
    fn no_boundary_comes_between_the_parts_of_a_transaction() {
        let mut batcher = Batcher::new(Lsn(10), Lsn::ZERO, None, 1, None);
        let layout = Layout { slots: Vec::new(), key: Vec::new(), absent: Vec::new() };
        let target = Some(batcher.register(bare(), Arc::new(layout)));
        batcher.keepalive(Lsn(20)).expect("nothing to compare");
        batcher.begin(&Begin { final_lsn: Lsn(30), commit_time_us: 0, xid: 1 }).expect("outside a transaction");
        batcher.truncate(target).expect("inside one");
        let ends = |pieces: Vec<Piece>| pieces.iter().map(|piece| (piece.through, piece.rows)).collect::<Vec<_>>();
        let first = batcher.has_complete();
        assert_eq!(ends(batcher.cut(first, Lsn(u64::MAX)).expect("sealed")), [(Some(Lsn(20)), 0), (None, 1)]);
        batcher.truncate(target).expect("inside one");
        assert_eq!(ends(batcher.cut(true, Lsn(u64::MAX)).expect("sealed")), [(None, 1)]);
        batcher.commit(&Commit { commit_lsn: Lsn(30), end_lsn: Lsn(31), commit_time_us: 0 }).expect("inside one");
        assert_eq!(ends(batcher.cut(true, Lsn(u64::MAX)).expect("sealed")), [(Some(Lsn(31)), 0)]);
    }

    #[test]
    fn a_position_that_nobody_vouches_for_is_not_cut_at() {
        let begin = |lsn| Begin { final_lsn: Lsn(lsn), commit_time_us: 0, xid: 1 };
        let commit = |lsn, end| Commit { commit_lsn: Lsn(lsn), end_lsn: Lsn(end), commit_time_us: 0 };
        let fresh = || Batcher::new(Lsn(20), Lsn(10), None, usize::MAX, None);
        let (mut idle, mut arriving, mut arrived) = (fresh(), fresh(), fresh());
        idle.keepalive(Lsn(41)).expect("nothing to compare");
        arriving.begin(&begin(41)).expect("outside a transaction");
        arrived.begin(&begin(30)).expect("outside a transaction");
        arrived.commit(&commit(30, 41)).expect("inside one");
        for mut batcher in [idle, arriving, arrived] {
            let error = batcher.cut(true, Lsn(40)).expect_err("beyond the server's WAL");
            assert!(error.is_retry() && error.full().contains("beyond the end of its WAL"), "{}", error.full());
            assert!(batcher.cut(true, Lsn(41)).is_ok());
        }
        // Below the stream's beginning, or before the last transaction's end, whether known or not.
        assert!(fresh().begin(&begin(9)).is_err() && fresh().begin(&begin(10)).is_ok());
        let mut batcher = fresh();
        batcher.begin(&begin(12)).expect("known");
        assert!(batcher.commit(&commit(13, 14)).is_err(), "another commit than announced");
        let mut batcher = fresh();
        batcher.begin(&begin(12)).expect("known");
        batcher.commit(&commit(12, 15)).expect("inside one");
        assert!(batcher.begin(&begin(14)).is_err());
        batcher.begin(&begin(15)).expect("at its end");
        assert!(batcher.commit(&commit(15, 15)).is_err(), "an end that is none");
    }

    /// Before 14.2 the server says nothing of a key that is stored out of line, and a row without its key is nobody's.
    #[test]
    fn an_update_without_its_key_is_not_written_and_asks_for_a_copy() {
        let column = crate::schema::version::SchemaColumn {
            name: "k".to_owned(),
            source: "k".to_owned(),
            attnum: 1,
            type_oid: 25,
            typmod: -1,
            source_type: "text".to_owned(),
            lake_type: crate::schema::LakeType::String,
            conversion: crate::schema::Conversion::Text,
            hashed: false,
            dropped: false,
        };
        let schema = TableSchema { columns: vec![column], key: vec!["k".to_owned()], ..TableSchema::clone(&bare()) };
        let mut batcher = Batcher::new(Lsn(10), Lsn::ZERO, None, usize::MAX, None);
        let layout = Layout { slots: vec![Some(0), None], key: vec![0], absent: Vec::new() };
        let target = Some(batcher.register(Arc::new(schema), Arc::new(layout)));
        batcher.begin(&Begin { final_lsn: Lsn(20), commit_time_us: 0, xid: 1 }).expect("outside a transaction");
        for (message, rows, torn) in
            [(&b"U\0\0\0\x01N\0\x02ut\0\0\0\x01a"[..], 0, true), (&b"U\0\0\0\x01K\0\x02t\0\0\0\x01anN\0\x02ut\0\0\0\x01a"[..], 1, false)]
        {
            let Ok(crate::pgoutput::Message::Update { old, new, .. }) = crate::pgoutput::decode(message) else { panic!("an UPDATE") };
            batcher.update(target, old, new).expect("inside one");
            assert_eq!(batcher.take_torn().map(|torn| torn.commit_lsn), torn.then_some(Lsn(20)));
            assert_eq!(batcher.cut(false, Lsn(u64::MAX)).expect("sealed").iter().map(|piece| piece.rows).sum::<u64>(), rows);
        }
    }
}
