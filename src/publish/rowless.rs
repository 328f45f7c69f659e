//! Files without rows: a warehouse refuses a manifest that names no file, and a version that was never copied nor changed has none.
//!
//! Owns: which file stands in. Does not own: its name's form (`lake`), its removal (`compact`, once no manifest names it).
//! Invariants: one manifest alone names it, no list of live files does; it has all columns of the version; the one that is named already is kept, and
//! a new one has a name that was never there, so that none is named that a sweep may have found unnamed before.

use crate::commit::{persist, put_document, random};
use crate::error::Result;
use crate::failpoint;
use crate::lake::{rowless_checksum, rowless_path, table_prefix};
use crate::store::Store;
use crate::table_name::TableName;
use bytes::Bytes;

/// The line for `manifest`, and whether a file was written for it. `body`: a file of the version that has all columns and no rows.
pub(super) async fn line(
    store: &dyn Store,
    manifest: &str,
    (table, version): (&TableName, u32),
    body: Bytes,
    day: &str,
) -> Result<(String, bool)> {
    let checksum = crc32c::crc32c(&body);
    let standing = persist("read a published manifest", || store.get(manifest)).await?;
    let standing = standing.map(|object| String::from_utf8_lossy(&object.body).into_owned()).unwrap_or_default();
    let folder = store.uri(&table_prefix(table, version));
    let is_right = |uri: &str| uri.starts_with(&folder) && rowless_checksum(uri) == Some(checksum);
    if standing.lines().count() == 1 && standing.lines().all(is_right) {
        return Ok((standing, false));
    }
    let path = rowless_path(table, version, day, checksum, random());
    put_document(store, &path, body).await?;
    failpoint::hit("publish.after_rowless");
    Ok((format!("{}\n", store.uri(&path)), true))
}
