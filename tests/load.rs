//! `campanile load`: what it pushes, what it tells, and where it does not go.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "tests fail by panicking"
)]

use std::net::{Ipv4Addr, SocketAddr};
use std::process::Output;

use campanile::dev::world::{Plan, World};
use campanile::exit;
use serde_json::Value;
use tokio::process::Command;

async fn load(arguments: &[&str], environment: &[(&str, &str)]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_campanile"))
        .arg("load")
        .args(arguments)
        .envs(environment.iter().copied())
        .kill_on_drop(true)
        .output()
        .await
        .unwrap()
}

/// What a run tells that must go well.
async fn told(arguments: &[&str], environment: &[(&str, &str)]) -> Value {
    let arguments = [arguments, &["--json", "--warm-up", "20"]].concat();
    let output = load(&arguments, environment).await;
    let errors = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(exit::OK), "{errors}");
    // Standard error is no terminal here, so there is no bar on it.
    assert_eq!(errors, "");
    serde_json::from_slice(&output.stdout).unwrap()
}

/// Whether all counts agree with so many pushes, each accepted.
#[track_caller]
fn counts(told: &Value, pushes: u64) {
    let report = &told["report"];
    for key in ["sent", "results"] {
        assert_eq!(report[key], pushes, "{key} of {report}");
    }
    for key in ["unanswered", "duplicates", "strays"] {
        assert_eq!(report[key], 0, "{key} of {report}");
    }
    assert_eq!(report["errors"], serde_json::json!({}));
    let sum = |list: &str, key: &str| -> u64 {
        let list = report[list].as_array().unwrap().iter();
        list.map(|step| step[key].as_u64().unwrap()).sum()
    };
    assert_eq!(sum("histogram", "count"), pushes);
    assert_eq!(sum("course", "pushes"), pushes);
    let millis = |name: &str| report["latency_ms"][name].as_f64().unwrap();
    assert!(
        0.0 < millis("p50") && millis("p50") <= millis("p99") && millis("p99") <= millis("max")
    );
    assert!(report["pushes_per_second"].as_f64().unwrap() > 0.0);
    assert!(
        report["cpu_seconds_per_100000"]["service"]
            .as_f64()
            .unwrap()
            > 0.0
    );
    assert!(report["course"][0]["memory_mib"].as_f64().unwrap() > 1.0);
}

#[actix_rt::test]
async fn a_component_is_flooded_with_a_window() {
    let told = told(
        &["--window", "16", "--devices", "10", "--pushes", "300"],
        &[],
    )
    .await;
    counts(&told, 300);
    assert_eq!(told["options"]["way"], "component");
    assert_eq!(told["options"]["window"], 16);
    let notified = told["report"]["notified"].as_u64().unwrap();
    assert!((1..=300).contains(&notified), "{notified}");
    assert_eq!(told["report"]["late_ms"], Value::Null);
}

#[actix_rt::test]
async fn a_server_is_flooded_at_a_rate_and_over_several_streams() {
    let arguments = [
        "--way",
        "s2s",
        "--streams",
        "100",
        "--rate",
        "100",
        "--devices",
        "10",
    ];
    let seconds = ["--seconds", "2", "--every", "1"];
    let told = told(&[&arguments[..], &seconds].concat(), &[]).await;
    counts(&told, 200);
    assert_eq!(told["report"]["course"].as_array().unwrap().len(), 2);
    assert!(told["report"]["late_ms"]["max"].as_f64().unwrap() > 0.0);
    assert!(told["report"]["seconds"].as_f64().unwrap() > 1.9);
}

/// People see the same without `--json`.
#[actix_rt::test]
async fn people_get_lines_and_a_picture() {
    let output = load(
        &["--devices", "5", "--pushes", "100", "--warm-up", "0"],
        &[],
    )
    .await;
    assert_eq!(output.status.code(), Some(exit::OK));
    let text = String::from_utf8(output.stdout).unwrap();
    for words in [
        "the built-in APNs",
        "memory MiB",
        "100 sent, 100 accepted",
        "p999",
        "####",
    ] {
        assert!(text.contains(words), "{text} does not say {words}");
    }
}

#[actix_rt::test]
async fn an_apns_of_ones_own_is_pushed_to_whatever_the_environment_says() {
    let listen: Vec<SocketAddr> = vec![(Ipv4Addr::LOCALHOST, 0).into()];
    let world = World::start(Plan {
        listen,
        ..Plan::default()
    })
    .await
    .unwrap();
    let endpoint = format!("https://localhost:{}", world.apple.address.port());
    let root = world.directory().join("root.pem");
    let key = world.directory().join("AuthKey_ABC123DEFG.p8");
    let place = ["--endpoint", &endpoint, "--ca", root.to_str().unwrap()];
    let known_as = [
        "--team-id",
        "DEF123GHIJ",
        "--key-id",
        "ABC123DEFG",
        "--key",
        key.to_str().unwrap(),
    ];
    let arguments = [
        &place[..],
        &known_as,
        &["--devices", "100", "--pushes", "50"],
    ]
    .concat();
    let apple = [("CAMPANILE__APPS__DEMO__ENDPOINT", "api.push.apple.com:443")];
    let told = told(&arguments, &apple).await;
    counts(&told, 50);
    assert_eq!(
        told["options"]["endpoint"],
        endpoint.trim_start_matches("https://")
    );
    let accepted = world.apple.control.counters().accepted;
    assert_eq!(accepted, 70, "with those before the first that counts");
    world.stop().await;
}

/// It ends before anything is started, with the code of a wrong command line.
#[actix_rt::test]
async fn apple_is_not_pushed_to() {
    for endpoint in [
        "https://api.push.apple.com",
        "https://API.Sandbox.Push.Apple.com.:2197",
        "https://17.188.143.10:443",
        // An address of Apple to the system alone.
        "https://0x11.1:443",
    ] {
        let output = load(&["--endpoint", endpoint, "--ca", "/dev/null"], &[]).await;
        assert_eq!(output.status.code(), Some(exit::USAGE), "{endpoint}");
        assert!(output.stdout.is_empty());
        let text = String::from_utf8(output.stderr).unwrap();
        assert!(text.contains("it is Apple's"), "{text}");
    }
}

#[actix_rt::test]
async fn options_that_do_not_fit_are_usage() {
    for arguments in [
        &["--rate", "5", "--window", "5"][..],
        &["--pushes", "5", "--seconds", "5"],
        &["--endpoint", "https://localhost:1"],
        &["--ca", "/dev/null"],
        &["--key", "/dev/null"],
        &[
            "--endpoint",
            "localhost:1",
            "--ca",
            "/dev/null",
            "--key-id",
            "ABC123DEFG",
        ],
        &["--streams", "2"],
        &["--rate", "0"],
        &["--devices", "0"],
    ] {
        let output = load(arguments, &[]).await;
        assert_eq!(output.status.code(), Some(exit::USAGE), "{arguments:?}");
    }
}
