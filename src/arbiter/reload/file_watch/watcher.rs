//! What the child does that watches files: it sleeps until their folders tell of a change, compares the states
//! of the files, and ends once a change has settled. Paths are followed anew each time, so that a link may be
//! changed at any level.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs::{self, Metadata};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::settling::{Settling, Stamps};
use crate::os::path_watch::PathWatch;
use crate::os::{clock, poll, process};

/// How long events are collected before the next look.
const LOOK_INTERVAL: Duration = Duration::from_millis(50);

/// The file that this process executes.
const THIS_PROGRAM: &str = "/proc/self/exe";

/// How many paths a file may lead over, by symbolic links.
const LINKS_MAX: usize = 64;

/// How many entries of a folder are looked at.
const ENTRIES_MAX: usize = 4096;

/// What is watched.
pub(super) struct Watched<'a> {
    pub(super) files: &'a [PathBuf],
    /// The program that an upgrade would execute.
    pub(super) program: Option<&'a Path>,
}

impl Watched<'_> {
    /// Waits until a change has settled. Returns the files that have changed, and the states of all.
    ///
    /// # Errors
    /// From inotify_init(2) and inotify_add_watch(2): the user has too many watches.
    pub(super) fn wait_changed(&self, baseline: &Stamps) -> io::Result<(Vec<PathBuf>, Stamps)> {
        let mut baseline = baseline.clone();
        if let Some(program) = self.program
            && let Some(stamp) = replaced_stamp(program)
        {
            baseline.entry(program.to_path_buf()).or_insert(stamp);
        }
        // Before the files are watched: what happens from here on is a change.
        let mut settling = Settling::new(&baseline, self.look(&baseline), clock::now());
        let watch = PathWatch::new()?;
        loop {
            self.watch_folders(&watch)?;
            let now = clock::now();
            settling.observe(self.look(settling.latest()), now);
            if settling.has_settled(now) {
                return Ok((settling.changed().cloned().collect(), settling.latest().clone()));
            }
            poll::wait_readable(&[watch.as_fd()], settling.deadline())?;
            // A neighbour may be written all the time.
            poll::wait_readable(&[], Some(clock::now() + LOOK_INTERVAL))?;
            watch.clear();
        }
    }

    /// Watches the folders of which an entry may change what the files are.
    fn watch_folders(&self, watch: &PathWatch) -> io::Result<()> {
        let mut folders = BTreeSet::new();
        for file in self.files.iter().map(PathBuf::as_path).chain(self.program) {
            // A folder that cannot be read is found missing below.
            let file = std::path::absolute(file).unwrap_or_else(|_| file.to_path_buf());
            add_folders(&file, &mut folders, &mut BTreeSet::new());
        }
        folders.iter().try_for_each(|folder| watch_existing(watch, folder))
    }

    /// Returns the states of the files. A program that cannot be executed, such as one that is being
    /// built, has the state that it had before.
    fn look(&self, before: &Stamps) -> Stamps {
        let files = self.files.iter().map(|file| (file.clone(), stamp(file)));
        let mut stamps: Stamps = files.collect();
        if let Some(program) = self.program {
            let earlier = before.get(program).copied();
            let stamp = if is_executable(program) { Some(stamp(program)) } else { earlier };
            stamps.insert(program.to_path_buf(), stamp.unwrap_or(0));
        }
        stamps
    }
}

/// Returns the state of the file that this process executes, if that was this program and its name is
/// another file's by now.
fn replaced_stamp(program: &Path) -> Option<u64> {
    let running = fs::read_link(THIS_PROGRAM).ok()?;
    let running = Path::new(running.to_str()?.strip_suffix(" (deleted)")?);
    let real = fs::canonicalize(program.parent()?).ok()?.join(program.file_name()?);
    (running == real).then(|| stamp(Path::new(THIS_PROGRAM)))
}

/// Whether a program is complete enough to be executed.
fn is_executable(program: &Path) -> bool {
    process::find_program(program.as_os_str(), None, None).is_ok()
        && fs::metadata(program).is_ok_and(|it| it.size() > 0)
}

/// Watches a folder, or the next one above that can be watched.
fn watch_existing(watch: &PathWatch, folder: &Path) -> io::Result<()> {
    for folder in folder.ancestors() {
        if watch.add_folder(folder)? {
            break;
        }
    }
    Ok(())
}

/// Adds the folder of a file, the file itself if it is a folder, and the folders of all links on its way.
fn add_folders(path: &Path, folders: &mut BTreeSet<PathBuf>, visited: &mut BTreeSet<PathBuf>) {
    if visited.len() >= LINKS_MAX || !visited.insert(path.to_path_buf()) {
        return;
    }
    if path.is_dir() {
        folders.insert(path.to_path_buf());
    }
    folders.extend(path.parent().map(Path::to_path_buf));
    for part in path.ancestors() {
        let (Some(folder), Ok(target)) = (part.parent(), fs::read_link(part)) else { continue };
        folders.insert(folder.to_path_buf());
        let rest = path.strip_prefix(part).unwrap_or(Path::new(""));
        let target = folder.join(target);
        // Without a slash at its end, which `join` of an empty path would add.
        let target = if rest == Path::new("") { target } else { target.join(rest) };
        add_folders(&target, folders, visited);
    }
}

/// Returns what identifies the state of a file, or of a folder and its entries.
fn stamp(path: &Path) -> u64 {
    let Ok(metadata) = fs::metadata(path) else { return 0 };
    let mut hasher = DefaultHasher::new();
    hash_metadata(&metadata, &mut hasher);
    if metadata.is_dir() {
        let entries = fs::read_dir(path).into_iter().flatten().flatten();
        let names = entries.map(|entry| entry.file_name());
        let mut names: Vec<_> =
            names.filter(|name| !is_of_editor(name)).take(ENTRIES_MAX).collect();
        names.sort();
        for name in names {
            name.hash(&mut hasher);
            if let Ok(metadata) = fs::metadata(path.join(&name)) {
                hash_metadata(&metadata, &mut hasher);
            }
        }
    }
    hasher.finish().max(1)
}

/// Whether a name is that of a hidden file, or of a backup: editors make them beside the file.
fn is_of_editor(name: &OsStr) -> bool {
    let name = name.as_encoded_bytes();
    name.starts_with(b".") || name.ends_with(b"~")
}

fn hash_metadata(metadata: &Metadata, hasher: &mut DefaultHasher) {
    (metadata.dev(), metadata.ino()).hash(hasher);
    // A folder has another size and time with each entry, also of those that do not count.
    if !metadata.is_dir() {
        (metadata.size(), metadata.mtime(), metadata.mtime_nsec()).hash(hasher);
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn stamp_of_folder_is_that_of_its_visible_files() {
        let dir = tempfile::tempdir().unwrap();
        let changes = |change: &dyn Fn(&Path)| {
            let before = stamp(dir.path());
            change(dir.path());
            stamp(dir.path()) != before
        };
        assert!(changes(&|dir| fs::write(dir.join("a"), "").unwrap()));
        assert!(changes(&|dir| fs::write(dir.join("a"), "1").unwrap()));
        assert!(changes(&|dir| fs::create_dir(dir.join("d")).unwrap()));
        assert!(changes(&|dir| fs::rename(dir.join("a"), dir.join("b")).unwrap()));
        assert!(!changes(&|dir| fs::write(dir.join(".b.swp"), "").unwrap()));
        assert!(!changes(&|dir| fs::write(dir.join("b~"), "").unwrap()));
        assert!(!changes(&|dir| fs::write(dir.join("d/x"), "").unwrap()));
        assert_eq!(stamp(&dir.path().join("none")), 0);
    }

    #[test]
    fn folders_are_those_of_all_links() {
        let dir = tempfile::tempdir().unwrap();
        let root = fs::canonicalize(dir.path()).unwrap();
        for folder in ["r1", "links", "etc"] {
            fs::create_dir(root.join(folder)).unwrap();
        }
        fs::write(root.join("r1/x"), "").unwrap();
        symlink("../r1", root.join("links/current")).unwrap();
        symlink(root.join("links/current/x"), root.join("etc/x")).unwrap();
        symlink("loop", root.join("loop")).unwrap();
        let folders_of = |path: &str| {
            let mut folders = BTreeSet::new();
            add_folders(&root.join(path), &mut folders, &mut BTreeSet::new());
            folders
        };
        let folders = folders_of("etc/x");
        for folder in ["etc", "links", "links/current"] {
            assert!(folders.contains(&root.join(folder)), "{folder}: {folders:?}");
        }
        assert!(folders_of("r1").contains(&root.join("r1")));
        assert_eq!(folders_of("loop"), BTreeSet::from([root.clone()]));
    }
}
