//! Claims about authentication, the session's settings and refusals.

use super::server::Server;
use super::{admin, one, options};
use huella::error::Kind;
use huella::postgres::{Replication, connect_sql, sqlstate};
use std::os::unix::fs::PermissionsExt;

const HBA: &str = "host all trusty 127.0.0.1/32 trust\nhost all passy 127.0.0.1/32 password\nhost all hashy 127.0.0.1/32 md5\n\
     host all scrammy 127.0.0.1/32 scram-sha-256\nhostnossl all openly 127.0.0.1/32 trust\nhost all postgres 127.0.0.1/32 trust";
const ROLES: &str = "CREATE ROLE trusty LOGIN REPLICATION; CREATE ROLE openly LOGIN REPLICATION;
     CREATE ROLE passy LOGIN REPLICATION PASSWORD 'pä ss:1'; CREATE ROLE scrammy LOGIN REPLICATION PASSWORD 'pä ss:1';
     SET password_encryption = 'md5'; CREATE ROLE hashy LOGIN REPLICATION PASSWORD 'pä ss:1'";
const PASSWORD: &str = "p%C3%A4%20ss%3A1";

/// Logs in both ways; `Err` is the text of the first refusal.
async fn both(url: &str) -> Result<(), String> {
    let options = options(url);
    let client = connect_sql(&options).await.map_err(|e| e.full())?;
    assert_eq!(one(&client, "SELECT current_user").await, options.user());
    let mut replication = Replication::connect(&options).await.map_err(|e| e.full())?;
    assert_eq!(replication.identify_system().await.unwrap().database.as_deref(), Some("postgres"));
    replication.terminate().await;
    Ok(())
}

#[tokio::test]
async fn every_method_logs_in_with_and_without_tls_and_binds_the_channel_where_it_can() {
    let server = Server::start(HBA, "");
    admin(&server).await.batch_execute(ROLES).await.unwrap();
    let ca = server.ca().display().to_string();
    for sslmode in ["disable", "prefer", "require"] {
        for login in ["trusty".to_owned(), format!("scrammy:{PASSWORD}")] {
            both(&server.url(&login, &format!("sslmode={sslmode}"))).await.unwrap();
        }
        // The password leaves only for a server that is proven to be the one, or by name.
        for (user, method) in [("passy", "password"), ("hashy", "md5")] {
            let login = format!("{user}:{PASSWORD}");
            let refused = both(&server.url(&login, &format!("sslmode={sslmode}"))).await.unwrap_err();
            assert!(refused.contains("sslmode=verify-full") && refused.contains(&format!("require_auth={method}")), "{refused}");
            both(&server.url(&login, &format!("sslmode={sslmode}&require_auth={method}"))).await.unwrap();
            let other = both(&server.url(&login, &format!("sslmode={sslmode}&require_auth=scram-sha-256"))).await.unwrap_err();
            assert!(other.contains("does not list"), "{other}");
        }
    }
    for user in ["passy", "hashy", "scrammy"] {
        both(&server.url(&format!("{user}:{PASSWORD}"), &format!("sslmode=verify-full&sslrootcert={ca}"))).await.unwrap();
    }
    both(&server.socket_url()).await.unwrap();
    // "prefer" goes on without TLS where pg_hba.conf has no line for it.
    both(&server.url("openly", "sslmode=prefer")).await.unwrap();
    assert!(both(&server.url("openly", "sslmode=require")).await.unwrap_err().contains("28000"));

    // The server refuses a wrong binding, so success under "require" proves a right one.
    let bound = |login: &str, sslmode: &str, binding: &str| server.url(login, &format!("sslmode={sslmode}&channel_binding={binding}"));
    let scrammy = format!("scrammy:{PASSWORD}");
    both(&bound(&scrammy, "require", "require")).await.unwrap();
    both(&bound(&scrammy, "require", "disable")).await.unwrap();
    let md5 = "require&require_auth=md5";
    for (login, sslmode) in [(scrammy.as_str(), "disable"), (&format!("hashy:{PASSWORD}"), md5), ("trusty", "require")] {
        let options = options(&bound(login, sslmode, "require"));
        for error in [connect_sql(&options).await.err().unwrap(), Replication::connect(&options).await.err().unwrap()] {
            assert_eq!(error.kind(), Kind::Source, "{login} {sslmode}: {}", error.full());
            assert!(error.full().contains("channel binding"), "{}", error.full());
        }
    }
}

#[tokio::test]
async fn refusals_have_their_kind_and_sqlstate_and_never_the_password() {
    let mut server = Server::start(HBA, "");
    let admin = admin(&server).await;
    admin.batch_execute(ROLES).await.unwrap();
    admin.batch_execute("CREATE ROLE plain LOGIN PASSWORD 'hush'").await.unwrap();
    let nobase = server.url("trusty", "dbname=absent");
    let cases = [
        (server.url("scrammy:hush", "sslmode=disable"), Some("28P01"), Kind::Source),
        (server.url("scrammy:hush", "sslmode=require"), Some("28P01"), Kind::Source),
        (server.url("hashy:hush", "sslmode=prefer&require_auth=md5"), Some("28P01"), Kind::Source),
        (server.url("passy:hush", "sslmode=require&require_auth=password"), Some("28P01"), Kind::Source),
        (server.url("plain:hush", "sslmode=prefer"), Some("28000"), Kind::Source),
        (nobase, Some("3D000"), Kind::Source),
    ];
    for (url, code, kind) in cases {
        let options = options(&url);
        for error in [connect_sql(&options).await.err().unwrap(), Replication::connect(&options).await.err().unwrap()] {
            let text = format!("{} {error:?} {options:?}", error.full());
            assert_eq!((sqlstate(&error), error.kind()), (code, kind), "{text}");
            assert!(!text.contains("hush"), "{text}");
            assert!(text.contains(&options.describe()), "{text}");
        }
    }
    let error = Replication::connect(&options(&server.url("scrammy", ""))).await.err().unwrap();
    let sql = connect_sql(&options(&server.url("scrammy", ""))).await.err().unwrap();
    assert_eq!(sql.full(), error.full());
    assert!(error.kind() == Kind::Config && error.full().contains("PGPASSWORD"), "{}", error.full());

    // A role without REPLICATION may use SQL, but gets no replication connection.
    admin.batch_execute("ALTER ROLE trusty NOREPLICATION").await.unwrap();
    let options = options(&server.url("trusty", ""));
    connect_sql(&options).await.unwrap();
    let error = Replication::connect(&options).await.err().unwrap();
    assert_eq!((sqlstate(&error), error.kind()), (Some("42501"), Kind::Source), "{}", error.full());

    server.kill();
    for error in [connect_sql(&options).await.err().unwrap(), Replication::connect(&options).await.err().unwrap()] {
        assert!(error.is_retry() && error.full().contains("refused"), "{}", error.full());
    }
    let nowhere = super::options("postgresql://u@no-such-host.invalid/d?connect_timeout=5");
    assert!(connect_sql(&nowhere).await.err().unwrap().is_retry());
}

#[tokio::test]
async fn a_peer_that_never_answers_is_given_up_in_time() {
    let deaf = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = deaf.local_addr().unwrap().port();
    for sslmode in ["disable", "require"] {
        let url = format!("postgresql://u@127.0.0.1:{port}/d?connect_timeout=1&sslmode={sslmode}");
        let started = std::time::Instant::now();
        let error = Replication::connect(&options(&url)).await.err().unwrap();
        assert!(error.is_retry() && error.full().contains("connect_timeout"), "{}", error.full());
        assert!(started.elapsed().as_secs() < 3);
    }
}

#[tokio::test]
async fn the_password_file_is_used() {
    let server = Server::start(HBA, "");
    admin(&server).await.batch_execute(ROLES).await.unwrap();
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("pass");
    std::fs::write(&file, format!("localhost:{}:postgres:scrammy:pä ss\\:1\n", server.port)).unwrap();
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600)).unwrap();
    both(&server.url("scrammy", &format!("passfile={}", file.display()))).await.unwrap();
}

#[tokio::test]
async fn defaults_of_role_and_database_do_not_change_how_values_are_printed() {
    let server = Server::start(HBA, "");
    let admin = admin(&server).await;
    admin
        .batch_execute(
            "CREATE ROLE trusty LOGIN; ALTER ROLE trusty SET DateStyle = 'SQL, DMY';
             ALTER ROLE trusty SET IntervalStyle = 'iso_8601'; ALTER ROLE trusty SET TimeZone = 'Asia/Tokyo';
             ALTER ROLE trusty SET extra_float_digits = -3; ALTER ROLE trusty SET bytea_output = 'escape';
             ALTER DATABASE postgres SET idle_in_transaction_session_timeout = 1000; ALTER ROLE trusty SET idle_session_timeout = 1000;
             ALTER DATABASE postgres SET search_path = 'public'; ALTER ROLE trusty SET row_security = on;
             ALTER ROLE trusty SET client_encoding = 'LATIN1'",
        )
        .await
        .unwrap();
    let client = connect_sql(&options(&server.url("trusty", "options=-c%20work_mem%3D7MB"))).await.unwrap();
    let settings = [
        ("client_encoding", "UTF8"),
        ("search_path", "\"\""),
        ("IntervalStyle", "postgres"),
        ("TimeZone", "UTC"),
        ("extra_float_digits", "3"),
        ("bytea_output", "hex"),
        ("lc_monetary", "C"),
        ("row_security", "off"),
        ("idle_in_transaction_session_timeout", "0"),
        ("idle_session_timeout", "0"),
        ("work_mem", "7MB"),
        ("application_name", "huella"),
    ];
    for (name, value) in settings {
        assert_eq!(one(&client, &format!("SHOW {name}")).await, value, "{name}");
    }
    assert!(one(&client, "SHOW DateStyle").await.starts_with("ISO"));
}
