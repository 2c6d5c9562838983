//! The main job: a workload in one domain uses a service of another by name, and nothing else joins the two.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "test code")]

use std::{
    io::{BufRead, BufReader},
    process::Stdio,
    time::Duration,
};

use carrick_tests::lab::{LAN_APP, MESH, Mesh, Postgres, Settings, TcpApp, echoes, needs};

const UP: Duration = Duration::from_secs(15);
const SERVICE: &str = "postgres@onprem.test";

fn exports_postgres(settings: Settings) -> Settings {
    settings.export("postgres", "tcp://10.0.0.5:5432", "spiffe://cloud.test/**")
}

#[test]
fn psql_and_pgbench_reach_a_database_without_a_route() {
    if !needs(&[MESH, &["postgres", "initdb", "psql", "pgbench"]].concat()) {
        return;
    }
    let mesh = Mesh::start(|a| a.import(SERVICE, "127.0.0.1:15432"), exports_postgres);
    let postgres = Postgres::start(&mesh.lab);
    postgres.init_pgbench();
    let client = mesh.a.ns();
    client
        .connect((LAN_APP, 5432).into(), Duration::from_millis(500))
        .expect_err("site a has no route to it");

    mesh.a.wait_import(SERVICE, "up", UP);
    let server = "select host(inet_server_addr()), host(inet_client_addr()) like '10.0.0.%'";
    assert_eq!(Postgres::psql_over(client, "127.0.0.1", 15432, server).ok(), "10.0.0.5|t");

    let report = Postgres::pgbench_over(client, "127.0.0.1", 15432, 8, 3).ok();
    assert!(report.contains("number of failed transactions: 0 (0.000%)"), "{report}");
    let done =
        report.lines().find_map(|l| l.strip_prefix("number of transactions actually processed: ")).unwrap();
    assert!(done.trim().parse::<u32>().unwrap() > 100, "{report}");
    assert_eq!(
        postgres.psql("select count(*) > 100 from pgbench_history").ok(),
        "t",
        "they are in the database"
    );
}

#[test]
fn an_application_is_pointed_at_a_name_and_nothing_else() {
    if !needs(&[MESH, &["postgres", "initdb", "psql"]].concat()) {
        return;
    }
    let listen = "listen: { control: \"[::]:7443\", tunnel: \"[::]:7443\", dns: \"127.0.0.1:53\" }";
    let dns = "dns: { servers: [\"192.0.2.53:53\"], suffix: mesh, virtual_ips: \"127.80.0.0/16\" }";
    let mesh = Mesh::start(|a| a.line(listen).line(dns).import_by_name(SERVICE), exports_postgres);
    let _postgres = Postgres::start(&mesh.lab);
    mesh.a.wait_import(SERVICE, "up", UP);

    let client = mesh.a.ns();
    let vip = client.run("kdig", &["@127.0.0.1", "+short", "postgres.onprem.test.mesh", "A"]).ok();
    assert!(vip.starts_with("127.80."), "{vip}");
    assert_eq!(Postgres::psql_over(client, &vip, 5432, "select 6 * 7").ok(), "42");

    client.resolv_conf("127.0.0.1");
    assert_eq!(Postgres::psql_over(client, "postgres.onprem.test.mesh", 5432, "select 6 * 7").ok(), "42");
    Postgres::psql_over(client, "mysql.onprem.test.mesh", 5432, "select 1").failed();
}

#[test]
fn the_catalogue_of_the_other_domain_can_be_read_and_connected_to_ad_hoc() {
    if !needs(MESH) {
        return;
    }
    let mesh = Mesh::start(
        |a| a.import("echo@onprem.test", "127.0.0.1:17000"),
        |b| {
            b.export("echo", "tcp://10.0.0.5:7000", "spiffe://cloud.test/**").export(
                "echo-too",
                "tcp://10.0.0.5:7001",
                "spiffe://cloud.test/carrick/gateway",
            )
        },
    );
    let _apps = [7000, 7001].map(|port| TcpApp::echo(&mesh.lab.b.ns, (LAN_APP, port).into()));
    mesh.a.wait_import("echo@onprem.test", "up", UP);

    let listed = mesh.a.run(&["services", "@onprem.test", "-o", "json"]).ok();
    let listed: serde_json::Value = serde_json::from_str(&listed).unwrap();
    let names: Vec<_> =
        listed["services"].as_array().unwrap().iter().map(|s| s["service"].as_str().unwrap()).collect();
    assert_eq!(names, ["echo@onprem.test", "echo-too@onprem.test"]);

    let explained = mesh.a.run(&["explain", "echo@onprem.test"]).ok();
    for evidence in ["_carrick._", "203.0.113.2:7443", "spiffe://onprem.test/carrick/gateway", "reachable"] {
        assert!(explained.contains(evidence), "`{evidence}` is missing:\n{explained}");
    }

    let binary = carrick_tests::lab::binary();
    let mut connect = mesh.a.ns().command(binary.to_str().unwrap());
    connect
        .args(["connect", "echo-too@onprem.test", "--listen", "127.0.0.1:17001", "-c"])
        .arg(mesh.a.config());
    let mut connect = connect.stdout(Stdio::piped()).spawn().unwrap();
    let mut line = String::new();
    BufReader::new(connect.stdout.take().unwrap()).read_line(&mut line).unwrap();
    assert!(line.contains("127.0.0.1:17001"), "{line}");
    for port in [17000, 17001] {
        echoes(&mut mesh.a.connect(port).unwrap(), b"through the mesh");
    }
    connect.kill().unwrap();
    connect.wait().unwrap();
    carrick_tests::lab::within(Duration::from_secs(5), "the ad hoc import to end with its command", || {
        mesh.a.connect(17001).is_err().then_some(())
    });
    echoes(&mut mesh.a.connect(17000).unwrap(), b"the other one stays");
}
