//! Files and folders that appear whole or not at all.
//!
//! What is being written lies beside its target as `NAME.partial-<pid>` and is renamed into place when its bytes are on
//! the disk. The writer holds a lock on it, which the operating system releases however the process ends; so
//! [`sweep`] tells a leftover from the work of a live process, even of one in another container.
//!
//! To replace a folder, the old one is renamed to `NAME.ternlm-old-<pid>`, the new one is renamed in, the old one is
//! removed. A crash between the two renames leaves no `NAME`, but the complete old one: [`recover`], which [`sweep`]
//! and all writers call first, renames it back. [`remove_folder`] gives a folder a partial name first, so that no
//! crash leaves half of it under its own.
//!
//! Errors name what was to be written, not what it is called until then.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File, OpenOptions};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use super::lock::is_at;
use crate::error::{Error, Result};

const PARTIAL: &str = ".partial-";
const OLD: &str = ".ternlm-old-";

/// Writes `path` through `write`; a file already there is replaced in one step, or stays as it is when anything fails.
pub fn write_file(path: impl AsRef<Path>, write: impl FnOnce(&mut dyn Write) -> Result<()>) -> Result<()> {
    let path = path.as_ref();
    may_be_file(path)?;
    // A folder that cannot be read, or is not there, says so when the file is created in it.
    let _ = recover(path);
    let create = |temp: &Path| OpenOptions::new().write(true).create_new(true).open(temp).map(Some);
    let (temp, file) = create_beside(path, "create", create)?;
    let file = file.expect("a file was opened");
    let finish = || {
        let mut out = BufWriter::with_capacity(1 << 20, &file);
        write(&mut out)?;
        out.flush().map_err(Error::io("write", path))?;
        drop(out);
        file.sync_all().map_err(Error::io("sync", path))?;
        fs::rename(&temp, path).map_err(Error::io("rename a file to", path))?;
        sync_folder(parent(path))
    };
    finish().map_err(|error| {
        let _ = fs::remove_file(&temp);
        as_wanted(error)
    })
}

/// [`write_file`] of bytes already in memory.
pub fn write_bytes(path: impl AsRef<Path>, bytes: &[u8]) -> Result<()> {
    let path = path.as_ref();
    write_file(path, |out| out.write_all(bytes).map_err(Error::io("write", path)))
}

/// What to do when the target of a [`DirectoryWriter`] is already there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IfExists {
    /// An error that says so.
    Refuse,
    /// A folder is replaced in whole; anything else is an error.
    Replace,
}

/// A folder that takes its name only when it is complete. Dropped without [`commit`](Self::commit), it is removed.
#[derive(Debug)]
pub struct DirectoryWriter {
    target: PathBuf,
    partial: Partial,
    if_exists: IfExists,
}

impl DirectoryWriter {
    /// Creates the empty partial folder, and the target's parents when they are missing.
    ///
    /// # Errors
    /// The target is there and is not to be replaced, or is not a folder.
    pub fn new(target: impl AsRef<Path>, if_exists: IfExists) -> Result<Self> {
        let target = target.as_ref().to_path_buf();
        let partial = Partial::beside(&target, || occupied(&target, if_exists).map(drop))?;
        Ok(Self { target, partial, if_exists })
    }

    /// The folder to write into.
    pub fn path(&self) -> &Path {
        &self.partial.path
    }

    /// Puts everything written onto the disk and gives the folder its name.
    pub fn commit(mut self) -> Result<()> {
        sync_tree(self.path()).map_err(as_wanted)?;
        let target = &self.target;
        let rename_in =
            || fs::rename(self.path(), target).map_err(Error::io("rename a finished folder to", target));
        if occupied(target, self.if_exists)? {
            let old = suffixed(target, OLD, 0)?;
            let _lock = lock_for_replacing(target)?;
            fs::rename(target, &old).map_err(Error::io("rename aside", target))?;
            rename_in().inspect_err(|_| {
                let _ = fs::rename(&old, target);
            })?;
            sync_folder(parent(target))?;
            // The new folder is in place; an old one that resists is left to `sweep`.
            let _ = fs::remove_dir_all(&old);
        } else {
            rename_in()?;
        }
        self.partial.renamed = true;
        sync_folder(parent(&self.target))
    }
}

/// A file that can be looked at before it takes its name. Dropped without [`commit`](Self::commit), it is removed, and what has
/// the name stays.
#[derive(Debug)]
pub struct FileWriter {
    target: PathBuf,
    /// Holds the file under its own name, by which readers know its kind.
    partial: Partial,
}

impl FileWriter {
    /// Creates the partial folder, and the target's parents when they are missing.
    ///
    /// # Errors
    /// The target is there and is no file.
    pub fn new(target: impl AsRef<Path>) -> Result<Self> {
        let target = target.as_ref().to_path_buf();
        let partial = Partial::beside(&target, || may_be_file(&target))?;
        Ok(Self { target, partial })
    }

    /// The file to write, as by [`write_file`].
    pub fn path(&self) -> PathBuf {
        self.partial.path.join(self.target.file_name().expect("the partial folder is named after it"))
    }

    /// Gives the file its name; one that has it already is replaced in one step.
    pub fn commit(self) -> Result<()> {
        may_be_file(&self.target)?;
        fs::rename(self.path(), &self.target).map_err(Error::io("rename a file to", &self.target))?;
        sync_folder(parent(&self.target))
    }
}

/// A folder beside a target. Dropped, it is removed unless it has been renamed.
#[derive(Debug)]
struct Partial {
    path: PathBuf,
    /// Held until the end; says that the folder is in use.
    _lock: Option<File>,
    renamed: bool,
}

impl Partial {
    /// Creates the folder, if `judge` has nothing against the target once earlier writers are cleared away.
    fn beside(target: &Path, judge: impl FnOnce() -> Result<()>) -> Result<Self> {
        fs::create_dir_all(parent(target)).map_err(Error::io("create", parent(target)))?;
        recover(target)?;
        judge()?;
        // Where a folder cannot be opened or locked, there is no lock and `sweep` keeps away from it.
        let (path, _lock) = create_beside(target, "create", |partial| {
            fs::create_dir(partial)?;
            match File::open(partial) {
                // A `sweep` was faster: as if the name were taken.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    Err(io::ErrorKind::AlreadyExists.into())
                }
                opened => Ok(opened.ok()),
            }
        })?;
        Ok(Self { path, _lock, renamed: false })
    }
}

impl Drop for Partial {
    fn drop(&mut self) {
        if !self.renamed {
            let _ = fs::remove_dir_all(&self.path);
        }
    }
}

/// Removes a folder so that it is there whole or, for every reader of its name, gone.
pub fn remove_folder(path: impl AsRef<Path>) -> Result<()> {
    let path = path.as_ref();
    let (doomed, _) = create_beside(path, "remove", |free| match free.exists() {
        true => Err(io::ErrorKind::AlreadyExists.into()),
        false => fs::rename(path, free).map(|()| None),
    })?;
    fs::remove_dir_all(&doomed).map_err(Error::io("remove", &doomed))
}

/// Removes from `folder` what dead processes left there, and finishes their interrupted replacements. Returns the
/// number of leftovers found. What a live process holds is not touched.
pub fn sweep(folder: impl AsRef<Path>) -> Result<usize> {
    tidy(folder.as_ref(), None)
}

/// [`sweep`] of what was to become `target`: what its writers left may be as large as a model, and a folder that was being
/// replaced is afterwards the old one or the new one, whole.
pub fn recover(target: impl AsRef<Path>) -> Result<()> {
    let target = target.as_ref();
    tidy(parent(target), target.file_name()).map(drop)
}

fn tidy(folder: &Path, of: Option<&OsStr>) -> Result<usize> {
    let mut count = 0;
    for (path, target, kind) in leftovers(folder)? {
        if of.is_some() && target.file_name() != of {
            continue;
        }
        let Some(_lock) = abandoned(&path) else { continue };
        count += 1;
        match kind {
            OLD => settle(&path, &target)?,
            _ if path.is_dir() => fs::remove_dir_all(&path).map_err(Error::io("remove", &path))?,
            _ => fs::remove_file(&path).map_err(Error::io("remove", &path))?,
        }
    }
    Ok(count)
}

/// An old folder whose replacement was interrupted: superseded when the target is there, otherwise put back.
fn settle(old: &Path, target: &Path) -> Result<()> {
    match fs::symlink_metadata(target) {
        Ok(_) => fs::remove_dir_all(old).map_err(Error::io("remove", old)),
        Err(_) => fs::rename(old, target).map_err(Error::io("restore", target)),
    }
}

/// Files and folders with one of our suffixes: path, path of the target, suffix.
fn leftovers(folder: &Path) -> Result<Vec<(PathBuf, PathBuf, &'static str)>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).map_err(Error::io("list", folder))? {
        let entry = entry.map_err(Error::io("list", folder))?;
        let name = entry.file_name();
        // Our own names are kept byte for byte where they are not UTF-8, but such leftovers are not swept.
        let Some(name) = name.to_str() else { continue };
        for kind in [PARTIAL, OLD] {
            if let Some((base, _)) = parted(name, kind) {
                found.push((entry.path(), folder.join(base), kind));
            }
        }
    }
    Ok(found)
}

/// The lock on a leftover when no live process holds it. Links, pipes and devices are never ours.
fn abandoned(path: &Path) -> Option<File> {
    let kind = fs::symlink_metadata(path).ok()?.file_type();
    if !kind.is_dir() && !kind.is_file() {
        return None;
    }
    let file = File::open(path).ok()?;
    file.try_lock().ok()?;
    // Its holder may have finished since it was opened, and another may have begun under the same name.
    is_at(&file, path).then_some(file)
}

fn lock_for_replacing(target: &Path) -> Result<Option<File>> {
    let Ok(folder) = File::open(target) else { return Ok(None) };
    match folder.try_lock() {
        Ok(()) | Err(fs::TryLockError::Error(_)) if is_at(&folder, target) => Ok(Some(folder)),
        _ => Err(Error::usage(format!("{} is being replaced by another process", target.display()))),
    }
}

/// A file is written over nothing but a file.
fn may_be_file(path: &Path) -> Result<()> {
    match fs::metadata(path) {
        Ok(there) if !there.is_file() => {
            Err(Error::usage(format!("{} exists and is no file", path.display())))
        }
        _ => Ok(()),
    }
}

/// Whether the target is there; an error when it must not be.
fn occupied(target: &Path, if_exists: IfExists) -> Result<bool> {
    match fs::symlink_metadata(target) {
        Ok(_) if if_exists == IfExists::Refuse => {
            Err(Error::usage(format!("{} exists and would be replaced", target.display())))
        }
        Ok(kind) if !kind.is_dir() => {
            Err(Error::usage(format!("{} exists and is not a folder", target.display())))
        }
        Ok(_) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(Error::io("read", target)(error)),
    }
}

/// Creates something under a free partial name beside `target` and locks it. `action` is what is being done to the target.
fn create_beside(
    target: &Path,
    action: &'static str,
    create: impl Fn(&Path) -> io::Result<Option<File>>,
) -> Result<(PathBuf, Option<File>)> {
    for attempt in 0..1000 {
        let partial = suffixed(target, PARTIAL, attempt)?;
        match create(&partial) {
            Ok(file) => {
                // Waits only for a `sweep` that was faster than this lock; then the name is gone, or another's, and another
                // name is tried.
                let mine = file.as_ref().is_none_or(|file| {
                    let _ = file.lock();
                    is_at(file, &partial)
                });
                if mine {
                    return Ok((partial, file));
                }
            }
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(as_wanted(Error::io(action, target)(error))),
        }
    }
    Err(Error::usage(format!("too many leftovers {}{PARTIAL}* : remove them", target.display())))
}

/// `target` with `suffix`, this process's id and, after the first attempt, a number.
fn suffixed(target: &Path, suffix: &str, attempt: usize) -> Result<PathBuf> {
    let name: Option<&OsStr> = target.file_name();
    let Some(name) = name else {
        return Err(Error::usage(format!("{:?} does not name a file or folder to write", target)));
    };
    let mut name = OsString::from(name);
    name.push(format!("{suffix}{}", std::process::id()));
    if attempt > 0 {
        name.push(format!("-{attempt}"));
    }
    Ok(target.with_file_name(name))
}

/// What a name with such a suffix was before, and the id of the process that gave it.
fn parted<'a>(name: &'a str, suffix: &str) -> Option<(&'a str, &'a str)> {
    let (base, tail) = name.rsplit_once(suffix)?;
    let ours = tail.split('-').all(|n| !n.is_empty() && n.bytes().all(|b| b.is_ascii_digit()));
    (ours && !base.is_empty()).then(|| (base, tail.split('-').next().unwrap_or(tail)))
}

/// An error about what this process is writing, by the name that it is to have.
fn as_wanted(error: Error) -> Error {
    match error {
        Error::Io { action, path, source } => Error::Io { action, path: wanted(&path), source },
        other => other,
    }
}

/// A path without the suffixes of this process. A [`FileWriter`]'s folder and the file in it become one.
fn wanted(path: &Path) -> PathBuf {
    let own = std::process::id().to_string();
    let mut wanted = PathBuf::new();
    let mut before: Option<&OsStr> = None;
    for part in path.components() {
        let name = part.as_os_str();
        if before.take() == Some(name) {
            continue;
        }
        let parted = name.to_str().and_then(|name| parted(name, PARTIAL));
        before = parted.filter(|(_, process)| *process == own).map(|(base, _)| OsStr::new(base));
        wanted.push(before.unwrap_or(name));
    }
    wanted
}

fn parent(path: &Path) -> &Path {
    path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Makes a rename durable. Only Unix can sync a folder.
fn sync_folder(folder: &Path) -> Result<()> {
    if cfg!(unix) {
        File::open(folder).and_then(|f| f.sync_all()).map_err(Error::io("sync", folder))?;
    }
    Ok(())
}

fn sync_tree(folder: &Path) -> Result<()> {
    for entry in fs::read_dir(folder).map_err(Error::io("list", folder))? {
        let path = entry.map_err(Error::io("list", folder))?.path();
        let kind = fs::symlink_metadata(&path).map_err(Error::io("read", &path))?;
        if kind.is_dir() {
            sync_tree(&path)?;
        } else if kind.is_file() {
            // Windows syncs only what is open for writing.
            let file = OpenOptions::new().read(true).write(cfg!(windows)).open(&path);
            file.and_then(|f| f.sync_all()).map_err(Error::io("sync", &path))?;
        }
    }
    sync_folder(folder)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(folder: &Path) -> Vec<String> {
        let list = fs::read_dir(folder).unwrap();
        let mut list: Vec<_> = list.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        list.sort();
        list
    }

    fn folder(path: &Path, content: &str) {
        fs::create_dir(path).unwrap();
        fs::write(path.join("f"), content).unwrap();
    }

    #[test]
    fn a_failed_write_leaves_the_old_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.json");
        write_bytes(&path, b"old").unwrap();
        let failed = write_file(&path, |out| {
            out.write_all(b"half of the n").unwrap();
            assert_eq!(sweep(dir.path()).unwrap(), 0, "a live write must not be swept");
            Err(Error::usage("stop"))
        });
        assert!(failed.is_err());
        assert_eq!((names(dir.path()), fs::read(&path).unwrap()), (vec!["a.json".into()], b"old".to_vec()));
        write_bytes(&path, b"new").unwrap();
        assert_eq!((names(dir.path()), fs::read(&path).unwrap()), (vec!["a.json".into()], b"new".to_vec()));
    }

    #[test]
    fn a_folder_appears_whole_or_not_at_all() {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("deep/er/model");
        let writer = DirectoryWriter::new(&target, IfExists::Refuse).unwrap();
        let second = DirectoryWriter::new(&target, IfExists::Refuse).unwrap();
        assert_ne!(writer.path(), second.path());
        fs::write(writer.path().join("f"), "1").unwrap();
        fs::create_dir(writer.path().join("sub")).unwrap();
        fs::write(writer.path().join("sub/g"), "2").unwrap();
        assert!(!target.exists());
        assert_eq!(sweep(target.parent().unwrap()).unwrap(), 0, "live folders must not be swept");
        writer.commit().unwrap();
        assert_eq!(fs::read(target.join("sub/g")).unwrap(), b"2");
        // The slower of two writers does not overwrite the faster one.
        let message = second.commit().unwrap_err().to_string();
        assert!(message.contains("exists"), "{message}");
        assert_eq!(names(target.parent().unwrap()), ["model"]);
        assert!(DirectoryWriter::new(&target, IfExists::Refuse).is_err());

        let writer = DirectoryWriter::new(&target, IfExists::Replace).unwrap();
        fs::write(writer.path().join("f"), "new").unwrap();
        writer.commit().unwrap();
        assert_eq!(
            (names(target.parent().unwrap()), names(&target)),
            (vec!["model".into()], vec!["f".into()])
        );
    }

    #[test]
    fn a_file_is_looked_at_before_it_takes_its_name() {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("deep/m.gguf");
        let write = |text: &[u8]| {
            let writer = FileWriter::new(&target).unwrap();
            assert_eq!(writer.path().file_name(), target.file_name());
            write_bytes(writer.path(), text).unwrap();
            assert_eq!(sweep(target.parent().unwrap()).unwrap(), 0, "a live file must not be swept");
            writer
        };
        write(b"old").commit().unwrap();
        drop(write(b"not what it was to be"));
        assert_eq!(fs::read(&target).unwrap(), b"old");
        write(b"new").commit().unwrap();
        assert_eq!(fs::read(&target).unwrap(), b"new");
        assert_eq!(names(target.parent().unwrap()), ["m.gguf"]);
        let folder = FileWriter::new(dir.path().join("deep")).unwrap_err().to_string();
        assert!(folder.contains("is no file"), "{folder}");
    }

    #[test]
    fn errors_name_what_was_wanted() {
        let dir = tempfile::tempdir().unwrap();
        let said = |result: Result<()>, action: &str, wanted: &Path| {
            let error = result.unwrap_err().to_string();
            assert!(error.starts_with(&format!("cannot {action} {}: ", wanted.display())), "{error}");
        };
        // A disk that is full.
        let full = |path: &Path| {
            write_file(path, |_| Err(Error::io("write", path)(io::ErrorKind::StorageFull.into())))
        };
        let [file, folder] = ["m.gguf", "model"].map(|name| dir.path().join(name));
        said(full(&file), "write", &file);
        let writer = FileWriter::new(&file).unwrap();
        said(full(&writer.path()), "write", &file);
        let writer = DirectoryWriter::new(&folder, IfExists::Refuse).unwrap();
        said(full(&writer.path().join("config.json")), "write", &folder.join("config.json"));
        // A name that leaves no room for a suffix.
        let long = dir.path().join("x".repeat(250));
        said(write_bytes(&long, b""), "create", &long);
        said(FileWriter::new(&long).map(drop), "create", &long);
        said(DirectoryWriter::new(&long, IfExists::Refuse).map(drop), "create", &long);
        said(remove_folder(dir.path().join("absent")), "remove", &dir.path().join("absent"));
        let of_another = Path::new("a.partial-4000000/a");
        assert_eq!(wanted(of_another), of_another);
    }

    #[test]
    fn a_crowd_under_one_name_keeps_what_it_writes() {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("model");
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    for _ in 0..600 {
                        let writer = DirectoryWriter::new(&target, IfExists::Refuse).unwrap();
                        fs::write(writer.path().join("f"), "1").unwrap();
                        let _ = sweep(dir.path());
                        assert_eq!(fs::read(writer.path().join("f")).unwrap(), b"1");
                    }
                });
            }
        });
        assert_eq!(names(dir.path()), [] as [&str; 0]);
    }

    #[test]
    fn every_crash_during_a_replacement_is_recovered() {
        let dir = tempfile::tempdir().unwrap();
        let [target, new, old] =
            ["m", "m.partial-4000000", "m.ternlm-old-4000000"].map(|name| dir.path().join(name));
        // Before the first rename; between the two; before the old one is removed.
        let crashes = [(["old", "new", ""], "old"), (["", "new", "old"], "old"), (["new", "", "old"], "new")];
        let ways: [fn(&Path); 3] = [
            |target| recover(target).unwrap(),
            |target| assert!(sweep(parent(target)).unwrap() > 0),
            |target| drop(DirectoryWriter::new(target, IfExists::Replace).unwrap()),
        ];
        for (present, wanted) in crashes {
            for way in ways {
                for (path, content) in [&target, &new, &old].into_iter().zip(present) {
                    if !content.is_empty() {
                        folder(path, content);
                    }
                }
                way(&target);
                assert_eq!(fs::read_to_string(target.join("f")).unwrap(), wanted);
                sweep(dir.path()).unwrap();
                assert_eq!(fs::read_to_string(target.join("f")).unwrap(), wanted);
                assert_eq!(names(dir.path()), ["m"]);
                fs::remove_dir_all(&target).unwrap();
            }
        }
    }

    #[test]
    fn sweep_keeps_what_is_not_ours() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["a.partial-", "b.partial-12x", ".partial-12", "c.old-2023", "d.partial-1-", "e"] {
            folder(&dir.path().join(name), "");
        }
        let before = names(dir.path());
        folder(&dir.path().join("x.partial-12"), "");
        fs::write(dir.path().join("y.json.partial-12-3"), "").unwrap();
        assert_eq!(sweep(dir.path()).unwrap(), 2);
        assert_eq!(names(dir.path()), before);
    }

    #[test]
    fn names_that_are_no_names() {
        for path in ["/", "..", "."] {
            assert!(DirectoryWriter::new(path, IfExists::Replace).is_err(), "{path}");
            assert!(write_bytes(path, b"").is_err(), "{path}");
        }
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("file"), "").unwrap();
        assert!(DirectoryWriter::new(dir.path().join("file"), IfExists::Replace).is_err());
        let message = write_bytes(dir.path().join("absent/file"), b"").unwrap_err().to_string();
        assert!(message.contains("absent"), "{message}");
    }
}
