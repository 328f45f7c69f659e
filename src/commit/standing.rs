//! The watermark as it stands in the lake.
//!
//! Owns: reading it. Does not own: whose it is (`claim`, `held`).

use super::persist;
use crate::error::{Error, Result};
use crate::lake::{WATERMARK, Watermark};
use crate::store::{Generation, Store};

/// Reads the watermark; `None` if the lake has none.
pub async fn load(store: &dyn Store) -> Result<Option<(Watermark, Generation)>> {
    match persist("read the watermark", || store.get(WATERMARK)).await? {
        Some(object) => Ok(Some((parse(&object.body)?, object.generation))),
        None => Ok(None),
    }
}

/// Reads the watermark, of a former layout as well: for who begins new versions of all tables.
pub async fn load_any(store: &dyn Store) -> Result<Option<(Watermark, Generation)>> {
    match persist("read the watermark", || store.get(WATERMARK)).await? {
        Some(object) => Ok(Some((parse_any(&object.body)?, object.generation))),
        None => Ok(None),
    }
}

/// The watermark in an object.
pub(super) fn parse(body: &[u8]) -> Result<Watermark> {
    Watermark::parse(body).map_err(unreadable)
}

/// The same, of a former layout as well.
pub(super) fn parse_any(body: &[u8]) -> Result<Watermark> {
    Watermark::parse_any(body).map_err(unreadable)
}

fn unreadable(error: crate::lake::Unreadable) -> Error {
    Error::lake("the watermark cannot be read; nothing is written until it can (restore an earlier generation of the object, or use another lake.url)")
        .with_source(error)
}
