//! Claims about certificates: what each sslmode accepts and refuses.

use super::options;
use super::server::Server;
use huella::error::{Error, Kind};
use huella::postgres::{ConnectOptions, Replication, SslMode, connect_sql};

const HBA: &str = "host all postgres 127.0.0.1/32 trust";

/// The refusal, the same both ways, or `None`.
async fn refusal(options: &ConnectOptions) -> Option<Error> {
    let sql = connect_sql(options).await.err();
    let replication = Replication::connect(options).await.err();
    assert_eq!(sql.as_ref().map(|e| e.full()), replication.as_ref().map(|e| e.full()));
    sql
}

#[tokio::test]
async fn each_sslmode_checks_what_it_says() {
    let server = Server::start(HBA, "");
    let (ca, other) = (server.ca(), server.other_ca());
    let with = |host: &str, sslmode: &str, ca: Option<&std::path::Path>| {
        let url = format!("postgresql://postgres@{host}:{}/postgres?hostaddr=127.0.0.1&sslmode={sslmode}", server.port);
        ConnectOptions::parse(&url, ca).unwrap()
    };
    let good = [
        ("localhost", "disable", None),
        ("localhost", "prefer", None),
        ("db.elsewhere", "require", None),
        ("db.elsewhere", "verify-ca", Some(&*ca)),
        ("db.elsewhere", "require", Some(&*ca)),
        ("localhost", "verify-full", Some(&*ca)),
        ("127.0.0.1", "verify-full", Some(&*ca)),
    ];
    for (host, sslmode, ca) in good {
        let options = with(host, sslmode, ca);
        let refused = refusal(&options).await;
        assert!(refused.is_none(), "{host} {sslmode}: {}", refused.unwrap().full());
        let client = connect_sql(&options).await.unwrap();
        let encrypted = super::one(&client, "SELECT ssl FROM pg_catalog.pg_stat_ssl WHERE pid = pg_backend_pid()").await;
        assert_eq!(encrypted, if sslmode == "disable" { "f" } else { "t" }, "{host} {sslmode}");
    }
    let bad = [
        ("localhost", "verify-ca", Some(&*other), "not signed by a trusted CA"),
        ("localhost", "require", Some(&*other), "not signed by a trusted CA"),
        ("localhost", "verify-full", Some(&*other), "not signed by a trusted CA"),
        ("localhost", "verify-full", None, "not signed by a trusted CA"),
        ("db.elsewhere", "verify-full", Some(&*ca), "another host name"),
        ("127.0.0.2", "verify-full", Some(&*ca), "another host name"),
    ];
    for (host, sslmode, ca, why) in bad {
        let refused = refusal(&with(host, sslmode, ca)).await.unwrap_or_else(|| panic!("{host} {sslmode} was accepted"));
        // Without system roots there is nothing to trust at all: a configuration error then.
        let no_roots = ca.is_none() && refused.kind() == Kind::Config;
        assert!(no_roots || (refused.kind() == Kind::Source && refused.full().contains(why)), "{host} {sslmode}: {}", refused.full());
    }
    assert_eq!(with("localhost", "require", Some(&*ca)).sslmode(), SslMode::VerifyCa);

    // sslrootcert= is the only root; a certificate that is itself in the file is trusted (self-signed servers).
    let url = |file: &std::path::Path| server.url("postgres", &format!("sslmode=verify-full&sslrootcert={}", file.display()));
    assert!(refusal(&options(&url(&ca))).await.is_none());
    assert!(refusal(&options(&url(&other))).await.is_some());
    assert!(refusal(&options(&url(&server.home().join("server.crt")))).await.is_none());
    let missing = refusal(&options(&url("/no/such/file".as_ref()))).await.unwrap();
    assert!(missing.kind() == Kind::Config && missing.full().contains("/no/such/file"), "{}", missing.full());
    let no_pem = refusal(&options(&url(&server.home().join("data/PG_VERSION")))).await.unwrap();
    assert_eq!(no_pem.kind(), Kind::Config, "{}", no_pem.full());
}

#[tokio::test]
async fn a_server_without_tls_is_refused_where_tls_is_demanded() {
    let server = Server::start(HBA, "ssl = off");
    assert!(refusal(&options(&server.url("postgres", "sslmode=prefer"))).await.is_none());
    let refused = refusal(&options(&server.url("postgres", "sslmode=require"))).await.unwrap();
    assert!(refused.kind() == Kind::Source && refused.full().contains("has no TLS"), "{}", refused.full());
}

#[tokio::test]
async fn a_pinned_certificate_counts_only_within_its_time() {
    let server = Server::start(HBA, "");
    let refused = |days: i64| {
        let file = server.renew(days);
        let url = server.url("postgres", &format!("sslmode=verify-full&sslrootcert={}", file.display()));
        async move { refusal(&options(&url)).await.map(|error| error.full()) }
    };
    assert_eq!(refused(1).await, None);
    let expired = refused(-1).await.expect("it is refused");
    assert!(expired.contains("has expired"), "{expired}");
}
