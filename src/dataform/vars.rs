//! The compilation variable `huella_cut`: the published cut in the form that BigQuery's SQL takes, LSNs as decimal text.
//!
//! Owns: that form. Pure. Why text: Dataform reads the variable in JavaScript, whose numbers are exact up to 2^53 only, and LSNs go further.

use crate::lake::Cut;
use crate::lsn::Lsn;
use serde_json::{Map, Value, json};

/// The number that `_commit_lsn` holds, as text.
fn decimal(lsn: Lsn) -> String {
    lsn.0.to_string()
}

/// The variable's text, one JSON object: `through`, `commit`, `dt` and `time` (the UTC date and time of the commit), and of each table
/// `version`, `snapshot` (the number -1: no copy), `snapshot_dt`, `columns` (their fingerprint) and `from_dt` (former `through` → date).
pub fn huella_cut(cut: &Cut) -> String {
    let table = |(name, table): (&crate::table_name::TableName, &crate::lake::CutTable)| {
        let from_dt: Map<String, Value> = table.from_dt.iter().map(|(lsn, dt)| (decimal(*lsn), json!(dt))).collect();
        let snapshot = table.snapshot.map_or_else(|| json!(-1), |lsn| json!(decimal(lsn)));
        let mut about = json!({"version": table.version, "snapshot": snapshot, "snapshot_dt": table.snapshot_dt, "from_dt": from_dt});
        // A cut that was published before there were fingerprints has none to compare.
        if !table.columns_fingerprint.is_empty() {
            about["columns"] = json!(table.columns_fingerprint);
        }
        (name.to_string(), about)
    };
    let tables: Map<String, Value> = cut.tables.iter().map(table).collect();
    let dt = cut.commit_time.get(..10).unwrap_or_default();
    json!({"through": decimal(cut.through), "commit": cut.commit, "dt": dt, "time": cut.commit_time, "tables": tables}).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn positions_are_text_also_beyond_what_a_number_of_javascript_holds() {
        let text = r#"{"format": 1, "through": "200000/1", "commit": "commits/7.json", "commit_time": "2026-11-24T03:22:10.123456Z", "former": ["1/0"],
            "tables": {"public.donaciones": {"version": 2, "snapshot": "0/FF", "snapshot_dt": "2026-11-20", "manifest": "gs://b/m",
                           "schema": "gs://b/s", "columns_fingerprint": "9c1c", "from_dt": {"1/0": "2026-11-22"}},
                       "public.otra": {"version": 1, "snapshot": null, "snapshot_dt": "2026-11-01", "manifest": "gs://b/o", "from_dt": {}}}}"#;
        let variable: Value = serde_json::from_str(&huella_cut(&Cut::parse(text.as_bytes()).expect("valid"))).expect("JSON");
        // 2^53 + 1: the first whole number that JavaScript cannot tell from its neighbour.
        assert_eq!(
            variable,
            json!({"through": "9007199254740993", "commit": "commits/7.json", "dt": "2026-11-24", "time": "2026-11-24T03:22:10.123456Z", "tables": {
                "public.donaciones": {"version": 2, "snapshot": "255", "snapshot_dt": "2026-11-20", "columns": "9c1c", "from_dt": {"4294967296": "2026-11-22"}},
                "public.otra": {"version": 1, "snapshot": -1, "snapshot_dt": "2026-11-01", "from_dt": {}}}})
        );
    }
}
