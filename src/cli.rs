//! The command line: commands, options, and what each help text says.
//!
//! Owns: names and shapes of arguments. Does not own: what commands do, the configuration file.
//! Invariants: wrong usage ends with exit code 2, help and version with 0; every command's help has an example.

use crate::observe::logs::Format;
use crate::status::MaxLag;
use crate::table_name::TableName;
use chrono::NaiveDate;
use clap::error::ErrorKind;
use clap::{Args, CommandFactory, Parser, Subcommand};
use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

/// Keeps a lake of Parquet files in step with a PostgreSQL database.
#[derive(Debug, Parser)]
#[command(name = "huella", version, max_term_width = 100, disable_help_subcommand = true)]
#[command(after_help = "Example:\n  huella --config huella.toml check && huella run\n\n\
    Exit codes: 0 done, 1 failed (retrying may help), 2 wrong usage, 3 configuration refused, 4 source refused,\n\
    5 lake refused, 6 fenced by a newer writer, 7 check, verify or status found something, 70 a bug in huella.")]
pub struct Cli {
    /// Configuration file [default: huella.toml, if it exists]
    #[arg(long, global = true, value_name = "FILE", env = "HUELLA_CONFIG")]
    pub config: Option<PathBuf>,
    /// How logs are written (to stderr) [default: text on a terminal, else Cloud Logging's JSON]
    #[arg(long, global = true, value_name = "FORMAT", env = "HUELLA_LOG_FORMAT")]
    pub log_format: Option<Format>,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Test source and lake without changing either; one line a finding, as it is found, with the fix
    #[command(after_help = "Examples:\n  huella check\n  huella check --json | jq '.findings[] | select(.severity == \"problem\")'\n\n\
        Writes and deletes one small probe object in the lake, to see its rights.\n\n\
        A line is: severity (ok, warning, problem), subject, text → fix. --json prints one document at the end: `problems` and `warnings` (counts),\n\
        `findings` (each with code, severity, subject, table, message, mend), and `tables` (what becomes of every column).\n\n\
        Exit codes: 0 nothing is in the way (warnings do not count), 7 at least one problem, 3 the configuration cannot be read.\n\
        The first connection from Cloud Run may take a minute, so connecting is given 75 s unless --timeout says otherwise.")]
    Check(Check),
    /// Replicate: publication, slot and first copy at the first start, then every change
    #[command(after_help = "Examples:\n  huella run\n  huella run --until-caught-up     # from a scheduler\n  \
        huella run --resnapshot          # after a lost slot\n  huella run --take-over           # end whoever holds the slot\n\n\
        SIGTERM commits what is there and ends; being killed at any time loses nothing.\n\n\
        A second `run` stands by, says so every 30 s, and takes over when the slot is free, or its holder does not answer the server, or commits\n\
        nothing of what there is. `--until-caught-up` beside a running `run` waits until that one has passed its target, and ends with 0.")]
    Run(Run),
    /// Copy tables whole: catalogues (mode = "snapshot"), or streamed tables anew, all committed as one
    #[command(after_help = "Examples:\n  huella snapshot                      # every catalogue that changed\n  \
        huella snapshot public.donaciones    # a streamed table anew, while the stream goes on\n\n\
        Works beside a running `huella run`, which takes the copies in at its next heartbeat, and without one.")]
    Snapshot(Snapshot),
    /// Show watermark, lag, slot health, tables and files
    #[command(
        after_help = "Examples:\n  huella status\n  huella status --max-lag 10min || mail -s huella me@example.org\n  huella status --json | jq '.attention[].code'\n\n\
        Exit codes: 0 nothing needs a person, 7 something does (`problem` lines; `attention` in JSON, with the codes source-unreachable, slot-missing,\n\
        slot-lost, slot-ahead, server-restored, server-cluster, publication-missing, table-pending, lag), 5 the lake cannot be read, 1 it does not answer."
    )]
    Status(Status),
    /// List the live data files, one a line: what a reader may read
    #[command(after_help = "Example:\n  huella files public.donaciones\n\nA table's name is schema.table, cut at the first dot, unquoted.")]
    Files(Files),
    /// Compare the lake's state with the source at one position, cell by cell
    #[command(after_help = "Example:\n  huella verify public.donaciones public.donantes\n\n\
        Ends with 0 if they are equal, 7 after printing the first differences. Waits for the lake to come to the position, and for copies that are\n\
        under way; a table that is gone at the source is passed over.")]
    Verify(Verify),
    /// Rewrite small files of closed days into large ones, and delete what nobody needs any more
    #[command(after_help = "Examples:\n  huella compact\n  huella compact --before 2026-11-01\n\n\
        Safe beside `huella run`, beside readers, and to start again at any time.")]
    Compact(Compact),
    /// Take every row of one key out of the lake, once it is deleted at the source
    #[command(after_help = "Examples:\n  huella forget public.donantes 4711\n  huella forget public.donantes id_donante=4711\n  \
        huella forget public.visitas '1020304050' 2026-11-24      # a key of two columns, in its order\n\n\
        The row is followed through changes of its key, in all versions of the table. Refused (4) while the source still has it, or the lake\n\
        has not come to its deletion. Without a key, name the rows by their cells. A hashed column takes the plain value (HUELLA_HASH_KEY is\n\
        set), or its hash with --hashed. Safe beside everything else, and to start again at any time.")]
    Forget(Forget),
    /// Write the manifests that BigQuery reads: one cut of all tables at one position
    #[command(after_help = "Example:\n  huella compact && huella publish\n\nAn unchanged table is not written again.")]
    Publish(Publish),
    /// Everything that a day needs: catalogues, compaction, one published cut, the Dataform run
    #[command(
        after_help = "Example:\n  huella daily\n\nSafe to start twice and again at any time: every step that is done already is found done. A step that \
        fails\nis told, and does not keep the others from being tried unless they need it."
    )]
    Daily(Daily),
    /// The Dataform project: what it needs to know of the lake, and running it
    #[command(after_help = "Examples:\n  huella dataform generate --out dataform/includes\n  huella dataform run")]
    Dataform {
        /// What to do.
        #[command(subcommand)]
        command: Dataform,
    },
    /// Drop slot and publication at the source; the lake stays
    #[command(after_help = "Example:\n  huella teardown --yes\n\nA later `run` needs --resnapshot.")]
    Teardown(Teardown),
}

/// `run`.
#[derive(Debug, Args)]
pub struct Run {
    /// End once everything that was in the WAL at the start is committed
    #[arg(long)]
    pub until_caught_up: bool,
    /// Make a new slot and copy every table again; the history in the lake is kept
    #[arg(long)]
    pub resnapshot: bool,
    /// HUELLA_HASH_KEY was changed on purpose: tables that hash are copied into new versions with it
    #[arg(long)]
    pub rehash: bool,
    /// End the session of whoever holds the slot, and take over at once
    #[arg(long)]
    pub take_over: bool,
    /// With --until-caught-up: give up after so long without progress
    #[arg(long, value_name = "DURATION", value_parser = duration, default_value = "10min")]
    pub timeout: Duration,
}

/// `check`.
#[derive(Debug, Args)]
pub struct Check {
    /// Print one JSON document: the findings, and what becomes of every table and column
    #[arg(long)]
    pub json: bool,
    /// Give up source or lake after so long without an answer [default: 15s, connecting to the source 75s]
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    pub timeout: Option<Duration>,
}

/// `snapshot`.
#[derive(Debug, Args)]
pub struct Snapshot {
    /// Tables [default: those in mode = "snapshot"]
    #[arg(value_name = "TABLE")]
    pub tables: Vec<TableName>,
    /// HUELLA_HASH_KEY was changed on purpose: snapshot tables that hash begin new versions with it
    #[arg(long)]
    pub rehash: bool,
}

/// `status`.
#[derive(Debug, Args)]
pub struct Status {
    /// Print one JSON document
    #[arg(long)]
    pub json: bool,
    /// End with 7 if the lake lags by more than this: a size of WAL (64MiB) or a time (10min) [default: no limit]
    #[arg(long, value_name = "BYTES|DURATION")]
    pub max_lag: Option<MaxLag>,
    /// Its limit.
    #[command(flatten)]
    pub patience: Patience,
}

/// For commands that only read.
#[derive(Debug, Args)]
pub struct Patience {
    /// Give up source or lake after so long without an answer
    #[arg(long, value_name = "DURATION", value_parser = duration, default_value = "15s")]
    pub timeout: Duration,
}

/// `files`.
#[derive(Debug, Args)]
pub struct Files {
    /// Tables [default: all]
    #[arg(value_name = "TABLE")]
    pub tables: Vec<TableName>,
    /// Print one JSON document
    #[arg(long)]
    pub json: bool,
    /// Also the files of former versions of the tables' schemas
    #[arg(long)]
    pub all_versions: bool,
    /// Its limit.
    #[command(flatten)]
    pub patience: Patience,
}

/// `verify`.
#[derive(Debug, Args)]
pub struct Verify {
    /// Tables [default: all]
    #[arg(value_name = "TABLE")]
    pub tables: Vec<TableName>,
    /// Its limit.
    #[command(flatten)]
    pub patience: Patience,
    /// Show keys and cells of rows that differ, though standard output is no terminal (a job's may be a log that many read)
    #[arg(long)]
    pub values: bool,
}

/// `compact`.
#[derive(Debug, Args)]
pub struct Compact {
    /// Only days before this one, YYYY-MM-DD [default: today, UTC]
    #[arg(long, value_name = "DATE")]
    pub before: Option<NaiveDate>,
    /// Give up after so long without progress
    #[arg(long, value_name = "DURATION", value_parser = duration, default_value = "10min")]
    pub timeout: Duration,
}

/// `publish`.
#[derive(Debug, Args)]
pub struct Publish {
    /// Give up after so long without progress
    #[arg(long, value_name = "DURATION", value_parser = duration, default_value = "10min")]
    pub timeout: Duration,
}

/// `daily`.
#[derive(Debug, Args)]
pub struct Daily {
    /// Give a step up after so long without progress
    #[arg(long, value_name = "DURATION", value_parser = duration, default_value = "10min")]
    pub timeout: Duration,
}

/// `forget`.
#[derive(Debug, Args)]
pub struct Forget {
    /// Table
    #[arg(value_name = "TABLE")]
    pub table: TableName,
    /// The key's values in its order, or COLUMN=VALUE for each
    #[arg(value_name = "KEY", required = true, allow_negative_numbers = true)]
    pub key: Vec<String>,
    /// Values of hashed columns are given as their hashes
    #[arg(long)]
    pub hashed: bool,
}

/// `dataform`.
#[derive(Debug, Subcommand)]
pub enum Dataform {
    /// Write huella_tables.json: the tables' names, versions, columns, types and keys
    #[command(after_help = "Example:\n  huella dataform generate --out dataform/includes\n\n\
        The file also keeps the tables' names in BigQuery stable: keep it under version control.")]
    Generate(Generate),
    /// Compile the repository with the published cut, run it, wait, and report each action
    #[command(after_help = "Example:\n  huella publish && huella dataform run\n\n\
        A cut that was merged is not merged again; a run that goes on is waited for. One that is older than dataform.max_age\n\
        is merged, and the command fails all the same.")]
    Run,
}

/// `dataform generate`.
#[derive(Debug, Args)]
pub struct Generate {
    /// Folder of the file
    #[arg(long, value_name = "DIR")]
    pub out: PathBuf,
}

/// `teardown`.
#[derive(Debug, Args)]
pub struct Teardown {
    /// Really drop them
    #[arg(long)]
    pub yes: bool,
}

/// `15s`, `10min`, `1h`; not nothing.
fn duration(text: &str) -> Result<Duration, String> {
    match humantime::parse_duration(text) {
        Ok(duration) if duration >= Duration::from_millis(100) => Ok(duration),
        Ok(_) => Err("must be at least 100ms".to_owned()),
        Err(_) => Err("give a number and a unit, such as 15s, 10min, 1h".to_owned()),
    }
}

/// Reads the process's arguments; prints and ends the process on wrong usage (2), `--help` and `--version` (0).
pub fn parse() -> Cli {
    parse_from(std::env::args_os()).unwrap_or_else(|error| error.exit())
}

/// As [`parse`], from given arguments (the program's name first).
///
/// # Errors
/// clap's, which knows its text and exit code.
pub fn parse_from(args: impl IntoIterator<Item = impl Into<OsString> + Clone>) -> Result<Cli, clap::Error> {
    let cli = Cli::try_parse_from(args)?;
    if let Command::Teardown(Teardown { yes: false }) = cli.command {
        let why = "teardown drops the replication slot and the publication at the source. The lake stays, but changes made from \
            then on reach it only by a new copy (`huella run --resnapshot`). If that is meant, say `huella teardown --yes`.";
        return Err(Cli::command().error(ErrorKind::MissingRequiredArgument, why));
    }
    Ok(cli)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(line: &str) -> Result<Cli, clap::Error> {
        parse_from(line.split_whitespace())
    }

    #[test]
    fn definition_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn commands_take_their_options() {
        assert!(matches!(
            parsed("huella run --until-caught-up").unwrap().command,
            Command::Run(Run { until_caught_up: true, resnapshot: false, rehash: false, take_over: false, timeout })
                if timeout == Duration::from_secs(600)
        ));
        assert!(matches!(
            parsed("huella run --resnapshot").unwrap().command,
            Command::Run(Run { until_caught_up: false, resnapshot: true, rehash: false, .. })
        ));
        assert!(matches!(parsed("huella check --json").unwrap().command, Command::Check(Check { json: true, timeout: None })));
        assert!(matches!(parsed("huella status --json").unwrap().command, Command::Status(Status { json: true, max_lag: None, .. })));
        let Command::Compact(compact) = parsed("huella compact --before 2026-11-24").unwrap().command else { panic!("not compact") };
        assert_eq!(compact.before, NaiveDate::from_ymd_opt(2026, 11, 24));
        let Command::Dataform { command: Dataform::Generate(generate) } = parsed("huella dataform generate --out d").unwrap().command
        else {
            panic!("not generate")
        };
        assert_eq!(generate.out, PathBuf::from("d"));
        let Command::Forget(forget) = parsed("huella forget public.t -5 a=b --hashed").unwrap().command else { panic!("not forget") };
        assert_eq!((forget.key, forget.hashed), (vec!["-5".to_owned(), "a=b".to_owned()], true));
        assert!(matches!(parsed("huella teardown --yes").unwrap().command, Command::Teardown(Teardown { yes: true })));
        let Command::Files(files) = parsed("huella files public.a.b --json --all-versions public.c").unwrap().command else {
            panic!("not files")
        };
        assert_eq!(files.tables, [TableName::new("public", "a.b"), TableName::new("public", "c")]);
        assert!(files.json && files.all_versions);
    }

    #[test]
    fn global_options_stand_before_or_behind_the_command() {
        for line in ["huella --config a.toml --log-format json check", "huella check --config a.toml --log-format json"] {
            let cli = parsed(line).unwrap();
            assert_eq!((cli.config, cli.log_format), (Some(PathBuf::from("a.toml")), Some(Format::Json)), "{line}");
        }
    }

    #[test]
    fn wrong_usage_ends_with_two() {
        for line in [
            "huella",
            "huella walk",
            "huella run --fast",
            "huella verify nodot",
            "huella --log-format xml check",
            "huella teardown",
            "huella compact --before x",
            "huella dataform",
            "huella status --max-lag much",
            "huella verify --timeout 0s",
            "huella forget public.t",
        ] {
            assert_eq!(parsed(line).unwrap_err().exit_code(), 2, "{line}");
        }
    }

    #[test]
    fn teardown_without_yes_says_what_it_would_do() {
        let text = parsed("huella teardown").unwrap_err().to_string();
        assert!(text.contains("slot") && text.contains("teardown --yes"), "{text}");
    }

    #[test]
    fn help_and_version_end_with_zero() {
        for line in ["huella --help", "huella --version", "huella run --help"] {
            assert_eq!(parsed(line).unwrap_err().exit_code(), 0, "{line}");
        }
    }

    #[test]
    fn every_help_has_an_example() {
        let cli = Cli::command();
        let below =
            cli.get_subcommands().flat_map(|c| c.get_subcommands().map(move |below| format!("{} {}", c.get_name(), below.get_name())));
        for name in cli.get_subcommands().map(|command| command.get_name().to_owned()).chain(below) {
            let help = parsed(&format!("huella {name} --help")).unwrap_err().to_string();
            assert!(help.contains("Example") && help.contains(&format!("huella {name}")), "{help}");
        }
    }
}
