//! The identity of a process: user, groups, umask; and the lookup of names.

use std::ffi::CString;
use std::io;

use nix::sys::stat::{Mode, umask};
use nix::unistd::{
    Gid, Group, Uid, User, getgrouplist, getgroups, getresgid, getresuid, setgid, setgroups, setuid,
};
use serde_json::{Value, json};

/// The user and groups that a process takes on: numbers, for which all names have been resolved.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Credentials {
    user: Option<u32>,
    group: Option<u32>,
    /// The supplementary groups; empty if neither user nor group is set.
    groups: Vec<u32>,
}

impl Credentials {
    /// Looks up a user and a group by name or number. The supplementary groups are the group itself
    /// and those of the user in the group database. Without a user, or for a user without an entry,
    /// they are the group alone.
    ///
    /// # Errors
    /// A message: a name is unknown, or the user has no entry and needs a group.
    pub(crate) fn lookup(user: Option<&str>, group: Option<&str>) -> Result<Self, String> {
        let account = user.map(find_user).transpose()?;
        let group = group.map(find_group).transpose()?;
        let group = match &account {
            Some(UserAccount { id, passwd: None }) if group.is_none() => {
                return Err(format!(
                    "user {id} has no entry in the user database that would name its group: give \
                     the group too"
                ));
            }
            Some(UserAccount { passwd: Some(entry), .. }) => group.or(Some(entry.gid)),
            Some(UserAccount { passwd: None, .. }) | None => group,
        };
        let groups = match (&account, group) {
            (Some(UserAccount { passwd: Some(entry), .. }), Some(group)) => {
                groups_of(entry, group)?
            }
            (_, Some(group)) => vec![group],
            (_, None) => Vec::new(),
        };
        Ok(Self { user: account.map(|account| account.id), group, groups })
    }

    /// Returns the numbers for [`from_json`](Self::from_json).
    pub(super) fn to_json(&self) -> Value {
        json!([self.user, self.group, self.groups])
    }

    /// Returns the credentials of [`to_json`](Self::to_json).
    pub(super) fn from_json(value: &Value) -> Option<Self> {
        let id = |value: &Value| value.as_u64()?.try_into().ok();
        let optional =
            |value: &Value| if value.is_null() { Some(None) } else { id(value).map(Some) };
        let [user, group, groups] = value.as_array()?.as_slice() else { return None };
        let groups = groups.as_array()?.iter().map(id).collect::<Option<_>>()?;
        Some(Self { user: optional(user)?, group: optional(group)?, groups })
    }

    /// Returns the user's number, if a user is set.
    pub(crate) fn user(&self) -> Option<u32> {
        self.user
    }

    /// Returns the group's number, if one is set: the requested one, or the user's own.
    pub(crate) fn group(&self) -> Option<u32> {
        self.group
    }

    /// Returns the numbers of the supplementary groups, which include the group.
    #[cfg(feature = "uring")]
    pub(super) fn groups(&self) -> &[u32] {
        &self.groups
    }

    /// Whether this process has this identity already, or may take it on.
    pub(crate) fn can_apply(&self) -> bool {
        let is_user = self.user.is_none_or(|user| Uid::effective().as_raw() == user);
        let is_group = self.group.is_none_or(|group| Gid::effective().as_raw() == group);
        Uid::effective().is_root() || (is_user && is_group)
    }

    /// Takes on the identity for good: supplementary groups, then group, then user. Verifies that
    /// every real, effective and saved ID has changed, that the groups are exactly those, and that
    /// the dropped privileges cannot be regained.
    ///
    /// # Errors
    /// `EPERM` without the privilege; otherwise a message that names what did not change.
    pub(crate) fn apply(&self) -> io::Result<()> {
        if let Some(group) = self.group.map(Gid::from_raw) {
            if Uid::effective().is_root() {
                self.apply_groups()?;
            }
            setgid(group)?;
            let now = getresgid()?;
            if [now.real, now.effective, now.saved] != [group; 3] {
                return Err(io::Error::other(format!("failed to set all group IDs to {group}")));
            }
        }
        if let Some(user) = self.user.map(Uid::from_raw) {
            setuid(user)?;
            let now = getresuid()?;
            if [now.real, now.effective, now.saved] != [user; 3] {
                return Err(io::Error::other(format!("failed to set all user IDs to {user}")));
            }
            if !user.is_root() && setuid(Uid::from_raw(0)).is_ok() {
                return Err(io::Error::other("dropped privileges can be regained"));
            }
        }
        Ok(())
    }

    fn apply_groups(&self) -> io::Result<()> {
        let wanted: Vec<Gid> = self.groups.iter().copied().map(Gid::from_raw).collect();
        setgroups(&wanted)?;
        let now: Vec<u32> = getgroups()?.into_iter().map(Gid::as_raw).collect();
        if sorted_unique(now) == sorted_unique(self.groups.clone()) {
            Ok(())
        } else {
            Err(io::Error::other("failed to set the user's supplementary groups"))
        }
    }
}

fn sorted_unique(mut groups: Vec<u32>) -> Vec<u32> {
    groups.sort_unstable();
    groups.dedup();
    groups
}

/// Looks up a user by name or number. A number need not be in the user database.
///
/// # Errors
/// A message: there is no such user.
pub(crate) fn lookup_uid(text: &str) -> Result<u32, String> {
    find_user(text).map(|account| account.id)
}

/// Looks up a group by name or number. A number need not be in the group database.
///
/// # Errors
/// A message: there is no such group.
pub(crate) fn lookup_gid(text: &str) -> Result<u32, String> {
    find_group(text)
}

struct UserAccount {
    id: u32,
    /// `None` for a number without an entry in the user database.
    passwd: Option<PasswdEntry>,
}

struct PasswdEntry {
    name: String,
    gid: u32,
}

/// The number that means "unchanged" to the kernel, and that no user or group has.
const UNCHANGED_ID: u32 = u32::MAX;

fn find_user(text: &str) -> Result<UserAccount, String> {
    let number = text.parse::<u32>().ok();
    let found = match number {
        Some(id) => User::from_uid(Uid::from_raw(id)),
        None => User::from_name(text),
    };
    match (found, number) {
        (Ok(Some(user)), _) => {
            let entry = PasswdEntry { name: user.name, gid: user.gid.as_raw() };
            Ok(UserAccount { id: user.uid.as_raw(), passwd: Some(entry) })
        }
        (Ok(None), Some(id)) if id != UNCHANGED_ID => Ok(UserAccount { id, passwd: None }),
        (Ok(None), _) => Err(format!("unknown user {text:?}")),
        (Err(errno), _) => Err(format!("failed to look up user {text:?}: {errno}")),
    }
}

fn find_group(text: &str) -> Result<u32, String> {
    if let Some(id) = text.parse().ok().filter(|id| *id != UNCHANGED_ID) {
        return Ok(id);
    }
    match Group::from_name(text) {
        Ok(Some(group)) => Ok(group.gid.as_raw()),
        Ok(None) => Err(format!("unknown group {text:?}")),
        Err(errno) => Err(format!("failed to look up group {text:?}: {errno}")),
    }
}

/// Returns all groups of a user, including `group`.
fn groups_of(entry: &PasswdEntry, group: u32) -> Result<Vec<u32>, String> {
    let failed = |why: &dyn std::fmt::Display| {
        format!("failed to look up the groups of user {:?}: {why}", entry.name)
    };
    let name = CString::new(entry.name.as_str()).map_err(|error| failed(&error))?;
    let groups = getgrouplist(&name, Gid::from_raw(group)).map_err(|errno| failed(&errno))?;
    Ok(groups.into_iter().map(Gid::as_raw).collect())
}

/// Whether this process runs as root, and may take on any identity.
pub(crate) fn is_root() -> bool {
    Uid::effective().is_root()
}

/// Returns the effective user of this process.
pub(crate) fn effective_uid() -> u32 {
    Uid::effective().as_raw()
}

/// Returns these bits of a mode without those of the umask. Only one thread may run.
pub(crate) fn masked(mode: u32) -> u32 {
    let mask = umask(Mode::from_bits_truncate(0o077));
    umask(mask);
    mode & !mask.bits()
}

/// Sets the umask.
pub(crate) fn set_umask(mask: u32) {
    umask(Mode::from_bits_truncate(mask));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lookup_by_name_and_uid_gives_equal_credentials() {
        let root = Credentials::lookup(Some("root"), None).unwrap();
        assert_eq!((root.user(), root.group()), (Some(0), Some(0)));
        assert_eq!(Credentials::lookup(Some("0"), None).unwrap(), root);
        assert!(root.groups.contains(&0));
        assert!(Credentials::lookup(None, None).unwrap().can_apply());
    }

    #[test]
    fn lookup_of_uid_without_entry_requires_group() {
        let credentials = Credentials::lookup(Some("4000000000"), Some("4000000001")).unwrap();
        assert_eq!(
            (credentials.user(), credentials.group()),
            (Some(4_000_000_000), Some(4_000_000_001))
        );
        assert_eq!(credentials.groups, [4_000_000_001]);
        let error = Credentials::lookup(Some("4000000000"), None).unwrap_err();
        assert!(error.contains("give the group too"), "{error}");
    }

    #[test]
    fn lookup_of_unknown_name_names_it_in_error() {
        for text in ["no-such-name", "-1", "4294967295", "99999999999"] {
            assert_eq!(
                Credentials::lookup(Some(text), None).unwrap_err(),
                format!("unknown user {text:?}")
            );
            assert_eq!(lookup_gid(text).unwrap_err(), format!("unknown group {text:?}"));
        }
    }

    #[test]
    fn lookup_of_group_without_user_sets_group_only() {
        let credentials = Credentials::lookup(None, Some("7")).unwrap();
        assert_eq!((credentials.user(), credentials.group()), (None, Some(7)));
        assert_eq!(credentials.groups, [7]);
    }
}
