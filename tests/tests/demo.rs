//! `carrick demo --check`: the whole thing as somebody sees it who has just unpacked it.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "test code")]

use std::time::Duration;

use carrick_tests::lab::{Lab, binary, needs};

#[test]
fn the_demo_verifies_itself_without_root_and_without_a_network() {
    if !needs(&["netns"]) {
        return;
    }
    let lab = Lab::new();
    // Where a user other than root can execute it.
    let copy = lab.dir().join("carrick");
    std::fs::copy(binary(), &copy).unwrap();
    lab.a.unplug();
    let user = ["--reuid=65534", "--regid=65534", "--clear-groups", "--no-new-privs", "--bounding-set=-all"];
    let mut args = user.to_vec();
    args.extend([copy.to_str().unwrap(), "demo", "--check"]);
    let report = lab.a.ns.run_for(Duration::from_secs(60), "setpriv", &args).ok();
    for fact in ["64 MiB", "1000", "Mbit/s"] {
        let found = report.replace(',', "").contains(fact);
        assert!(found, "`{fact}` is missing:\n{report}");
    }
}
