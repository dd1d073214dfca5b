//! A folder that one process works in at a time, and a thing that one makes while others wait for it.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io;
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};

/// The file in the folder that is locked. It stays: to remove it while others may have it open would make two locks.
const NAME: &str = ".lock";

/// Held until it is dropped. The operating system releases it however the process ends.
#[derive(Debug)]
pub struct FolderLock {
    file: File,
    path: PathBuf,
    /// Folders that were made for it, the deepest first.
    made: Vec<PathBuf>,
}

impl FolderLock {
    /// Locks `folder`, which is made if need be; what was made goes away again when nothing was put into it. Where the
    /// file system has no locks, a warning says so.
    ///
    /// # Errors
    /// Another process holds the lock, or the folder cannot be written.
    pub fn acquire(folder: &Path) -> Result<Self> {
        let path = folder.join(NAME);
        // A holder that fails takes away what it made: then another file has the name, or none.
        for _ in 0..100 {
            let missing = |dir: &&Path| !dir.as_os_str().is_empty() && !dir.exists();
            let made = folder.ancestors().take_while(missing).map(Path::to_path_buf).collect();
            let open = || {
                fs::create_dir_all(folder)?;
                OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path)
            };
            let file = match open() {
                Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
                opened => opened.map_err(Error::io("create", &path))?,
            };
            match file.try_lock() {
                Ok(()) => {}
                Err(TryLockError::WouldBlock) => {
                    return Err(Error::usage(format!(
                        "{}: another process is at work in this run (it holds {NAME}): wait for its end or stop it, or \
                         choose another folder (--out DIR)",
                        folder.display()
                    )));
                }
                Err(TryLockError::Error(error)) => {
                    tracing::warn!(
                        "{}: no lock, as {error}: nothing keeps a second process out of this run",
                        path.display()
                    );
                }
            }
            if is_at(&file, &path) {
                return Ok(Self { file, path, made });
            }
        }
        Err(unsteady(&path))
    }
}

impl Drop for FolderLock {
    fn drop(&mut self) {
        let Some(folder) = self.made.first() else { return };
        let only_the_lock = fs::read_dir(folder)
            .is_ok_and(|mut entries| entries.all(|entry| entry.is_ok_and(|entry| entry.file_name() == NAME)));
        if only_the_lock && is_at(&self.file, &self.path) {
            let _ = fs::remove_file(&self.path);
            // One that is not empty stays.
            let _ = self.made.iter().try_for_each(fs::remove_dir);
        }
    }
}

/// The turn to make what is to have a name, until it is dropped. The operating system ends it however the process ends.
#[derive(Debug)]
pub struct Turn {
    file: File,
    path: PathBuf,
}

impl Turn {
    /// Waits while another has the turn for `target`: look then whether it is made. The lock is `NAME.lock` beside it. Where
    /// the file system has no locks, nobody waits.
    ///
    /// # Errors
    /// The folder of `target` cannot be written.
    pub fn wait(target: &Path) -> Result<Self> {
        let mut path = target.as_os_str().to_owned();
        path.push(".lock");
        let path = PathBuf::from(path);
        for _ in 0..10_000 {
            let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path);
            // One that another user left can be locked, too.
            let file = file.or_else(|error| File::open(&path).map_err(|_| error));
            let file = file.map_err(Error::io("create", &path))?;
            if let Err(TryLockError::WouldBlock) = file.try_lock() {
                tracing::warn!("waiting for another process, which makes {}", target.display());
                while file.lock().is_err_and(|error| error.kind() == io::ErrorKind::Interrupted) {}
            }
            // Who had the turn took the name away.
            if is_at(&file, &path) {
                return Ok(Self { file, path });
            }
        }
        Err(unsteady(&path))
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        if is_at(&self.file, &self.path) {
            let _ = fs::remove_file(&self.path);
        }
    }
}

fn unsteady(path: &Path) -> Error {
    Error::usage(format!("{}: found a lock that comes and goes, wanted one that stays", path.display()))
}

/// Whether the open file or folder is still the one of that name.
pub(super) fn is_at(file: &File, path: &Path) -> bool {
    let (Ok(open), Ok(named)) = (file.metadata(), fs::symlink_metadata(path)) else { return false };
    #[cfg(unix)]
    {
        use std::os::unix::fs::MetadataExt;
        (open.dev(), open.ino()) == (named.dev(), named.ino())
    }
    // Elsewhere a file that is open keeps its name.
    #[cfg(not(unix))]
    {
        let _ = (open, named);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_at_a_time_and_free_again() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("runs/a");
        let first = FolderLock::acquire(&folder).unwrap();
        let refused = FolderLock::acquire(&folder).unwrap_err().to_string();
        assert!(refused.contains("runs/a: another process is at work"), "{refused}");
        // Nothing was put into it, so nothing stays.
        drop(first);
        assert!(!dir.path().join("runs").exists());

        let first = FolderLock::acquire(&folder).unwrap();
        fs::write(folder.join("recipe.toml"), "").unwrap();
        drop(first);
        assert!(folder.join(NAME).exists());
        // What was there already is never taken away.
        fs::remove_file(folder.join("recipe.toml")).unwrap();
        drop(FolderLock::acquire(&folder).unwrap());
        assert!(folder.join(NAME).exists());
    }

    #[test]
    fn a_crowd_gets_in_one_by_one() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("runs/a");
        let inside = std::sync::atomic::AtomicUsize::new(0);
        let entered: usize = std::thread::scope(|scope| {
            let crowd: Vec<_> = (0..8)
                .map(|_| {
                    scope.spawn(|| {
                        (0..200)
                            .filter(|_| {
                                let Ok(_lock) = FolderLock::acquire(&folder) else { return false };
                                let alone = inside.fetch_add(1, std::sync::atomic::Ordering::SeqCst) == 0;
                                inside.fetch_sub(1, std::sync::atomic::Ordering::SeqCst);
                                assert!(alone, "two hold the lock");
                                true
                            })
                            .count()
                    })
                })
                .collect();
            crowd.into_iter().map(|thread| thread.join().unwrap()).sum()
        });
        assert!(entered > 0);
    }

    #[test]
    fn turns_come_one_after_the_other() {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("corpus");
        let made = std::sync::atomic::AtomicUsize::new(0);
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    let _turn = Turn::wait(&target).unwrap();
                    if !target.exists() {
                        std::thread::sleep(std::time::Duration::from_millis(20));
                        fs::write(&target, "").unwrap();
                        made.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
                    }
                });
            }
        });
        assert_eq!(made.into_inner(), 1);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "the lock is gone");
    }
}
