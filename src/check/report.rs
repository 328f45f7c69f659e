//! What a check found, and the plan, as lines and as one JSON document.
//!
//! Owns: both forms. Invariants: both say the same; codes and fields of the document are only ever added to.

use super::{Finding, Severity, TablePlan};
use serde_json::{Value, json};

/// A check's outcome.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Report {
    /// What was found, what is as it should be included.
    pub findings: Vec<Finding>,
    /// What becomes of the tables; empty if the source could not be examined.
    pub tables: Vec<TablePlan>,
}

impl Report {
    /// How many findings are of this severity.
    pub fn count(&self, severity: Severity) -> usize {
        self.findings.iter().filter(|finding| finding.severity == severity).count()
    }

    /// The document.
    pub fn document(&self) -> Value {
        let finding = |finding: &Finding| {
            json!({
                "code": finding.code, "severity": finding.severity, "subject": finding.subject, "table": finding.table,
                "message": finding.text, "mend": finding.mend,
            })
        };
        json!({
            "problems": self.count(Severity::Problem), "warnings": self.count(Severity::Warning),
            "findings": self.findings.iter().map(finding).collect::<Vec<_>>(), "tables": self.tables,
        })
    }
}
