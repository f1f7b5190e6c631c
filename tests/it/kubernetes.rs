//! Kubernetes: the manifests in config/kubernetes/ agree with the program.

use std::collections::BTreeSet;
use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_yaml::Value;

use crate::control::Controlled;

fn directory() -> PathBuf {
    config("kubernetes")
}

fn config(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("config").join(name)
}

fn manifest(name: &str) -> Value {
    manifest_in("kubernetes", name)
}

fn manifest_in(directory: &str, name: &str) -> Value {
    let text = fs::read_to_string(config(directory).join(name)).unwrap();
    serde_yaml::from_str(&text).unwrap()
}

fn seconds(value: &Value) -> u64 {
    value.as_str().unwrap().strip_suffix('s').unwrap().parse().unwrap()
}

fn ports(addresses: &[&Value]) -> BTreeSet<u64> {
    let port = |it: &&Value| it.as_str().unwrap().rsplit_once(':').unwrap().1.parse().unwrap();
    addresses.iter().map(port).collect()
}

#[test]
fn manifests_agree_with_the_settings_and_the_program() {
    let settings = manifest("ostler.yaml");
    let deployment = manifest("deployment.yaml");
    let pod = &deployment["spec"]["template"]["spec"];
    let container = &pod["containers"][0];

    let stop = seconds(&settings["pre_stop"]) + seconds(&settings["graceful_timeout"]);
    assert!(pod["terminationGracePeriodSeconds"].as_u64().unwrap() > stop);
    let readiness = &container["readinessProbe"];
    let number = |key: &str| readiness[key].as_u64().unwrap();
    let noticed = (number("periodSeconds") + number("timeoutSeconds")) * number("failureThreshold");
    assert!(noticed < seconds(&settings["pre_stop"]), "the probe fails before the drain");

    let bound = ports(&[&settings["bind"][0], &settings["metrics_bind"]]);
    let exposed = container["ports"].as_sequence().unwrap();
    let named: BTreeSet<_> = exposed.iter().map(|port| port["name"].as_str().unwrap()).collect();
    let exposed: BTreeSet<_> =
        exposed.iter().map(|port| port["containerPort"].as_u64().unwrap()).collect();
    assert_eq!(exposed, bound);
    let service = manifest("service.yaml");
    for port in service["spec"]["ports"].as_sequence().unwrap() {
        assert!(named.contains(port["targetPort"].as_str().unwrap()), "{port:?}");
    }

    let labels = &deployment["spec"]["template"]["metadata"]["labels"];
    assert_eq!(&deployment["spec"]["selector"]["matchLabels"], labels);
    assert_eq!(&service["spec"]["selector"], labels);
    let budget = manifest("poddisruptionbudget.yaml");
    assert_eq!(&budget["spec"]["selector"]["matchLabels"], labels);
    let metrics_service = manifest("metrics-service.yaml");
    assert_eq!(&metrics_service["spec"]["selector"], labels);
    let monitor = manifest("servicemonitor.yaml");
    let monitored = &monitor["spec"]["selector"]["matchLabels"];
    assert_eq!(monitored, &metrics_service["metadata"]["labels"]);
    let scaler = manifest("horizontalpodautoscaler.yaml");
    assert_eq!(scaler["spec"]["scaleTargetRef"]["name"], deployment["metadata"]["name"]);
    // `workers: auto` is the CPU limit, and a worker of this class has one thread.
    let target = scaler["spec"]["metrics"][0]["pods"]["target"]["averageValue"].as_str().unwrap();
    let target: u64 = target.strip_suffix('m').unwrap().parse().unwrap();
    let cpus = container["resources"]["limits"]["cpu"].as_str().unwrap();
    assert_eq!((&settings["workers"], &settings["worker_class"]), (&"auto".into(), &"mio".into()));
    assert!(target < 1000 * cpus.parse::<u64>().unwrap(), "the target can be exceeded");

    let it = Controlled::start(&["-k", "mio"]);
    for probe in ["startupProbe", "readinessProbe", "livenessProbe"] {
        let path = container[probe]["httpGet"]["path"].as_str().unwrap();
        assert_eq!(it.ask_metrics(path, &[]).status(), 200, "{probe}");
        assert_eq!(container[probe]["httpGet"]["port"], "metrics");
    }
    let metrics = it.metrics();
    let name = scaler["spec"]["metrics"][0]["pods"]["metric"]["name"].as_str().unwrap();
    assert!(metrics.contains(&format!("# TYPE {name} gauge\n")), "{name}");
    it.server.finish();

    let program = env!("CARGO_BIN_EXE_ostler");
    let settings = directory().join("ostler.yaml");
    let printed =
        Command::new(program).arg("--config").arg(settings).arg("--print-config").output();
    let printed = printed.unwrap();
    assert!(printed.status.success(), "{}", String::from_utf8_lossy(&printed.stderr));
    let kustomization = manifest("kustomization.yaml");
    for resource in kustomization["resources"].as_sequence().unwrap() {
        assert!(directory().join(resource.as_str().unwrap()).is_file(), "{resource:?}");
    }
}

/// The manifests with a leader permit what the master does, and no more.
#[test]
fn manifests_with_a_leader_agree_with_the_settings() {
    let of = |name: &str| manifest_in("kubernetes-leader", name);
    let (settings, base) = (of("ostler.yaml"), manifest("ostler.yaml"));
    for key in ["metrics_bind", "pre_stop", "graceful_timeout"] {
        assert_eq!(settings[key], base[key]);
    }
    assert_eq!(settings["pools"]["web"]["bind"], base["bind"]);
    let role = of("role.yaml");
    let strings =
        |value: &Value| serde_yaml::to_string(value).unwrap().replace(['-', ' ', '\n'], "");
    let rights: Vec<_> = role["rules"].as_sequence().unwrap().iter().collect();
    assert_eq!(rights[0]["resourceNames"][0], settings["leader_kubernetes_lease"]);
    assert_eq!(
        (strings(&rights[0]["verbs"]), strings(&rights[1]["verbs"])),
        ("getupdate".into(), "create".into())
    );
    for rule in rights {
        assert_eq!(
            (&rule["apiGroups"][0], &rule["resources"][0]),
            (&"coordination.k8s.io".into(), &"leases".into())
        );
    }
    let (binding, account) = (of("rolebinding.yaml"), of("serviceaccount.yaml"));
    assert_eq!(binding["roleRef"]["name"], role["metadata"]["name"]);
    assert_eq!(binding["subjects"][0]["name"], account["metadata"]["name"]);
    let kustomization = of("kustomization.yaml");
    let patch = kustomization["patches"][0]["patch"].as_str().unwrap();
    let patch: Value = serde_yaml::from_str(patch).unwrap();
    let pod = &patch["spec"]["template"]["spec"];
    assert_eq!(pod["serviceAccountName"], account["metadata"]["name"]);
    assert_eq!(pod["automountServiceAccountToken"], true);
    for resource in kustomization["resources"].as_sequence().unwrap() {
        assert!(
            config("kubernetes-leader").join(resource.as_str().unwrap()).exists(),
            "{resource:?}"
        );
    }
    let file = config("kubernetes-leader").join("ostler.yaml");
    let printed = Command::new(env!("CARGO_BIN_EXE_ostler"))
        .arg("--config")
        .arg(file)
        .arg("--print-config")
        .output();
    let printed = printed.unwrap();
    assert!(printed.status.success(), "{}", String::from_utf8_lossy(&printed.stderr));
}

/// What kustomize makes of both directories.
#[test]
#[ignore = "slow"]
fn kustomize_keeps_the_name_of_the_lease() {
    let directory = config("kubernetes-leader");
    match Command::new("kubectl").arg("kustomize").arg(directory).output() {
        Ok(output) => {
            let said = String::from_utf8_lossy(&output.stderr);
            assert!(output.status.success(), "{said}");
            let text = String::from_utf8_lossy(&output.stdout).into_owned();
            let lease = manifest_in("kubernetes-leader", "ostler.yaml");
            let lease = lease["leader_kubernetes_lease"].as_str().unwrap();
            assert!(text.contains(&format!("  resourceNames:\n  - {lease}\n")), "{text}");
            assert!(text.contains("      serviceAccountName: shop\n"), "{text}");
        }
        Err(error) => eprintln!("skipped: kubectl: {error}"),
    }
}

/// kubernetes-validate (PyPI) has the published schemas.
#[test]
#[ignore = "slow"]
fn manifests_are_valid_by_the_published_schemas() {
    let given = env::var("TEST_KUBERNETES_VALIDATE");
    let program = given.clone().unwrap_or_else(|_| "kubernetes-validate".to_owned());
    let of_cluster = [
        "deployment",
        "service",
        "metrics-service",
        "poddisruptionbudget",
        "horizontalpodautoscaler",
    ];
    let files = of_cluster.map(|name| directory().join(format!("{name}.yaml")));
    let of_leader = ["serviceaccount", "role", "rolebinding"];
    let of_leader = of_leader.map(|name| config("kubernetes-leader").join(format!("{name}.yaml")));
    let mut command = Command::new(&program);
    match command.args(["--strict", "--quiet"]).args(files).args(of_leader).output() {
        Ok(output) => {
            let said =
                String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
            assert!(output.status.success(), "{said}");
        }
        Err(error) if given.is_ok() => panic!("{program}: {error}"),
        Err(error) => eprintln!("skipped: {program}: {error}"),
    }
}
