//! The command line: commands, options, and what each help text says.
//!
//! Owns: names and shapes of arguments. Does not own: what commands do, the configuration file.
//! Invariants: wrong usage ends with exit code 2, help and version with 0; every command's help has an example.

use crate::observe::logs::Format;
use crate::table_name::TableName;
use chrono::NaiveDate;
use clap::error::ErrorKind;
use clap::{Args, CommandFactory, Parser, Subcommand};
use std::ffi::OsString;
use std::path::PathBuf;

/// Keeps a lake of Parquet files in step with a PostgreSQL database.
#[derive(Debug, Parser)]
#[command(name = "huella", version, max_term_width = 100, disable_help_subcommand = true)]
#[command(after_help = "Example:\n  huella --config huella.toml check && huella run\n\n\
    Exit codes: 0 done, 1 failed (retrying may help), 2 wrong usage, 3 configuration refused, 4 source refused,\n\
    5 lake refused, 6 fenced by a newer writer, 7 verify or check found something, 70 a fault of huella itself.")]
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
    /// Test source and lake without changing either; one line a finding, with the mend
    #[command(
        after_help = "Example:\n  huella check\n  huella check --json | jq '.findings[] | select(.severity == \"problem\")'\n\nWrites and deletes one small probe object in the lake, to see its rights.\n\
        Ends with 0 if nothing is in the way, 7 if something was found."
    )]
    Check(Check),
    /// Replicate: publication, slot and first copy at the first start, then every change
    #[command(after_help = "Examples:\n  huella run\n  huella run --until-caught-up     # from a scheduler\n  \
        huella run --resnapshot          # after a lost slot\n\nSIGTERM commits what is there and ends; being killed at any time loses nothing.")]
    Run(Run),
    /// Copy tables whole: catalogues (mode = "snapshot"), or streamed tables anew, all committed as one
    #[command(after_help = "Examples:\n  huella snapshot                      # every catalogue that changed\n  \
        huella snapshot public.donaciones    # a streamed table anew, while the stream goes on\n\n\
        Works beside a running `huella run`, which takes the copies in at its next heartbeat, and without one.")]
    Snapshot(Snapshot),
    /// Show watermark, lag, slot health, tables and files
    #[command(after_help = "Example:\n  huella status --json | jq .through")]
    Status(Status),
    /// List the live data files, one a line: what a reader may read
    #[command(after_help = "Example:\n  huella files public.donaciones\n\nA table's name is schema.table, cut at the first dot, unquoted.")]
    Files(Files),
    /// Compare the lake's state with the source at one position, cell by cell
    #[command(after_help = "Example:\n  huella verify public.donaciones public.donantes\n\n\
        Ends with 0 if they are equal, 7 after printing the first differences.")]
    Verify(Verify),
    /// Rewrite small files of closed days into large ones, and delete what nobody needs any more
    #[command(after_help = "Examples:\n  huella compact\n  huella compact --before 2026-11-01\n\n\
        Safe beside `huella run`, beside readers, and to start again at any time.")]
    Compact(Compact),
    /// Write the manifests that BigQuery reads: one cut of all tables at one position
    #[command(after_help = "Example:\n  huella compact && huella publish\n\nAn unchanged table is not written again.")]
    Publish,
    /// Everything that a day needs: catalogues, compaction, one published cut, the Dataform run
    #[command(
        after_help = "Example:\n  huella daily\n\nSafe to start twice and again at any time: every step that is done already is found done. A step that \
        fails\nis told, and does not keep the others from being tried unless they need it."
    )]
    Daily,
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
    /// Make a new slot and copy every table anew; the history in the lake is kept
    #[arg(long)]
    pub resnapshot: bool,
    /// HUELLA_HASH_KEY was changed on purpose: tables that hash are copied into new versions with it
    #[arg(long)]
    pub rehash: bool,
}

/// `check`.
#[derive(Debug, Args)]
pub struct Check {
    /// Print one JSON document: the findings, and what becomes of every table and column
    #[arg(long)]
    pub json: bool,
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
}

/// `verify`.
#[derive(Debug, Args)]
pub struct Verify {
    /// Tables [default: all]
    #[arg(value_name = "TABLE")]
    pub tables: Vec<TableName>,
}

/// `compact`.
#[derive(Debug, Args)]
pub struct Compact {
    /// Only days before this one, YYYY-MM-DD [default: today, UTC]
    #[arg(long, value_name = "DATE")]
    pub before: Option<NaiveDate>,
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
        A cut that was merged is not merged again; a run that goes on is waited for.")]
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
            Command::Run(Run { until_caught_up: true, resnapshot: false, rehash: false })
        ));
        assert!(matches!(
            parsed("huella run --resnapshot").unwrap().command,
            Command::Run(Run { until_caught_up: false, resnapshot: true, rehash: false })
        ));
        assert!(matches!(parsed("huella check --json").unwrap().command, Command::Check(Check { json: true })));
        assert!(matches!(parsed("huella status --json").unwrap().command, Command::Status(Status { json: true })));
        let Command::Compact(compact) = parsed("huella compact --before 2026-11-24").unwrap().command else { panic!("not compact") };
        assert_eq!(compact.before, NaiveDate::from_ymd_opt(2026, 11, 24));
        let Command::Dataform { command: Dataform::Generate(generate) } = parsed("huella dataform generate --out d").unwrap().command
        else {
            panic!("not generate")
        };
        assert_eq!(generate.out, PathBuf::from("d"));
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
        for command in Cli::command().get_subcommands() {
            let help = parsed(&format!("huella {} --help", command.get_name())).unwrap_err().to_string();
            assert!(help.contains("Example") && help.contains(&format!("huella {}", command.get_name())), "{help}");
        }
    }
}
