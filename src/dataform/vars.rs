//! The compilation variable `huella_cut`: the published cut in the form that BigQuery's SQL takes, LSNs as numbers.
//!
//! Owns: that form. Pure.

use crate::lake::Cut;
use crate::lsn::Lsn;
use serde_json::{Map, Value, json};

/// An LSN as `_commit_lsn` holds it.
fn int64(lsn: Lsn) -> i64 {
    lsn.0 as i64
}

/// The variable's text, one JSON object: `through`, `commit`, `dt` (the UTC date of the commit), and of each table `version`, `snapshot`
/// (-1: no copy), `snapshot_dt` and `from_dt` (former `through` as text → date).
pub fn huella_cut(cut: &Cut) -> String {
    let table = |(name, table): (&crate::table_name::TableName, &crate::lake::CutTable)| {
        let from_dt: Map<String, Value> = table.from_dt.iter().map(|(lsn, dt)| (int64(*lsn).to_string(), json!(dt))).collect();
        let about = json!({
            "version": table.version, "snapshot": table.snapshot.map_or(-1, int64), "snapshot_dt": table.snapshot_dt, "from_dt": from_dt,
        });
        (name.to_string(), about)
    };
    let tables: Map<String, Value> = cut.tables.iter().map(table).collect();
    let dt = cut.commit_time.get(..10).unwrap_or_default();
    json!({"through": int64(cut.through), "commit": cut.commit, "dt": dt, "tables": tables}).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn positions_are_numbers_and_keys_their_text() {
        let text = r#"{"format": 1, "through": "1/10", "commit": "commits/7.json", "commit_time": "2026-11-24T03:22:10.123456Z", "former": ["1/0"],
            "tables": {"public.donaciones": {"version": 2, "snapshot": "0/FF", "snapshot_dt": "2026-11-20", "manifest": "gs://b/m", "from_dt": {"1/0": "2026-11-22"}},
                       "public.otra": {"version": 1, "snapshot": null, "snapshot_dt": "2026-11-01", "manifest": "gs://b/o", "from_dt": {}}}}"#;
        let variable: Value = serde_json::from_str(&huella_cut(&Cut::parse(text.as_bytes()).expect("valid"))).expect("JSON");
        assert_eq!(
            variable,
            json!({"through": 4_294_967_312i64, "commit": "commits/7.json", "dt": "2026-11-24", "tables": {
                "public.donaciones": {"version": 2, "snapshot": 255, "snapshot_dt": "2026-11-20", "from_dt": {"4294967296": "2026-11-22"}},
                "public.otra": {"version": 1, "snapshot": -1, "snapshot_dt": "2026-11-01", "from_dt": {}}}})
        );
    }
}
