//! Rejects options of primary and standby that conflict.

use super::super::error::SettingsError;
use super::super::schema::Settings;
use crate::leader::RECORD_TTL_MAX;

type Checked = Result<(), SettingsError>;

pub(super) fn validate(settings: &Settings) -> Checked {
    let store = match (&settings.leader_kubernetes_lease, settings.leader_etcd.is_empty()) {
        (None, true) => return Ok(()),
        (None, false) => "leader_etcd",
        (Some(_), true) => "leader_kubernetes_lease",
        (Some(_), false) => {
            let source = settings.source("leader_etcd");
            let reason = format!("leader_etcd ({source}) is another store: set one of them");
            return conflict(settings, "leader_kubernetes_lease", reason);
        }
    };
    if !cfg!(feature = "leader") {
        let reason = "this program was built without the feature leader".to_owned();
        return conflict(settings, store, reason);
    }
    if settings.reload {
        let source = settings.source("reload");
        let reason =
            format!("a changed program is not upgraded to ({source}): set reload to false");
        return conflict(settings, store, reason);
    }
    let (certificate, key) = (&settings.leader_client_cert, &settings.leader_client_key);
    validate_pair(
        settings,
        ("leader_client_cert", "leader_client_key"),
        certificate.is_some() == key.is_some(),
    )?;
    match &settings.leader_kubernetes_lease {
        Some(lease) => validate_kubernetes(settings, lease),
        None => validate_etcd(settings),
    }
}

fn conflict(settings: &Settings, key: &'static str, reason: String) -> Checked {
    Err(SettingsError::Conflict { source: settings.source(key).clone(), key, reason })
}

fn validate_pair(
    settings: &Settings,
    (key, other_key): (&'static str, &'static str),
    agrees: bool,
) -> Checked {
    if agrees {
        return Ok(());
    }
    conflict(settings, key, format!("needs {other_key}, and that needs {key}: set both"))
}

fn validate_etcd(settings: &Settings) -> Checked {
    let Some(url) = settings.leader_etcd.first() else { return Ok(()) };
    if settings.leader_key.is_none() {
        let reason = format!("{url} needs a key to hold: set leader_key");
        return conflict(settings, "leader_etcd", reason);
    }
    validate_pair(
        settings,
        ("leader_user", "leader_password_file"),
        settings.leader_user.is_some() == settings.leader_password_file.is_some(),
    )?;
    let has_secrets = settings.leader_user.is_some() || settings.leader_client_cert.is_some();
    settings.leader_etcd.iter().try_for_each(|url| {
        validate_url(settings, "leader_etcd", (url.as_str(), 2379), has_secrets)
    })
}

fn validate_kubernetes(settings: &Settings, lease: &str) -> Checked {
    for (key, name) in [
        ("leader_kubernetes_lease", Some(lease)),
        ("leader_kubernetes_namespace", settings.leader_kubernetes_namespace.as_deref()),
    ] {
        if let Some(name) = name.filter(|name| !is_object_name(name)) {
            let reason = format!(
                "{name:?} is no name of Kubernetes: use lower-case letters, digits, - and . between them"
            );
            return conflict(settings, key, reason);
        }
    }
    for (key, is_set, instead) in [
        ("leader_key", settings.leader_key.is_some(), "leader_kubernetes_lease is the name"),
        ("leader_user", settings.leader_user.is_some(), "set leader_kubernetes_token_file"),
        (
            "leader_password_file",
            settings.leader_password_file.is_some(),
            "set leader_kubernetes_token_file",
        ),
    ] {
        if is_set {
            return conflict(settings, key, format!("is for etcd, not for Kubernetes: {instead}"));
        }
    }
    if settings.leader_ttl > RECORD_TTL_MAX {
        let reason = "is at most 1h with leader_kubernetes_lease".to_owned();
        return conflict(settings, "leader_ttl", reason);
    }
    let has_secrets =
        settings.leader_kubernetes_token_file.is_some() || settings.leader_client_cert.is_some();
    match &settings.leader_kubernetes_api {
        Some(url) => {
            validate_url(settings, "leader_kubernetes_api", (url.as_str(), 6443), has_secrets)
        }
        None => Ok(()),
    }
}

/// Returns whether objects of Kubernetes may have this name.
fn is_object_name(name: &str) -> bool {
    let is_inner = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let is_label = |label: &str| {
        label.bytes().all(|byte| is_inner(byte) || byte == b'-')
            && label.bytes().next().is_some_and(is_inner)
            && label.bytes().last().is_some_and(is_inner)
    };
    name.len() <= 253 && name.split('.').all(is_label)
}

fn validate_url(
    settings: &Settings,
    key: &'static str,
    (url, port): (&str, u16),
    has_secrets: bool,
) -> Checked {
    let host = url.strip_prefix("http://").or(url.strip_prefix("https://"));
    if host.is_none_or(str::is_empty) {
        return conflict(settings, key, format!("{url:?} is no URL such as https://HOST:{port}"));
    }
    if url.starts_with("https://") && settings.leader_ca_file.is_none() {
        let reason = format!("{url:?} is certified by an authority: set leader_ca_file");
        return conflict(settings, key, reason);
    }
    if url.starts_with("http://") && has_secrets {
        let reason = format!("a login over {url:?} can be read on the way: use https://");
        return conflict(settings, key, reason);
    }
    Ok(())
}
