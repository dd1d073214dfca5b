//! What the machine says of itself: its memory, cores and processor.

use sysinfo::{CpuRefreshKind, MemoryRefreshKind, RefreshKind, System};

/// Bytes of memory.
#[derive(Clone, Copy, Debug)]
pub struct Memory {
    /// Main memory and swap, or what a container may use of main memory.
    pub total: u64,
    /// Could be given to this process now.
    pub available: u64,
}

impl Memory {
    /// `None` where the system does not say.
    pub fn now() -> Option<Self> {
        let said = RefreshKind::nothing().with_memory(MemoryRefreshKind::everything());
        let system = System::new_with_specifics(said);
        if system.total_memory() == 0 {
            return None;
        }
        let total = system.total_memory() + system.total_swap();
        let container = system.cgroup_limits().filter(|limits| limits.total_memory < system.total_memory());
        Some(match container {
            None => Self { total, available: system.available_memory() },
            // Swap has a limit of its own there. What was read of files is given back on demand: only own pages count.
            Some(limits) => Self {
                total: limits.total_memory,
                available: system.available_memory().min(limits.total_memory.saturating_sub(limits.rss)),
            },
        })
    }
}

/// Most bytes of memory that this process has held, where the system says.
pub fn peak_memory() -> Option<u64> {
    #[cfg(target_os = "linux")]
    {
        let status = std::fs::read_to_string("/proc/self/status").ok()?;
        let held = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
        held.split_whitespace().next()?.parse::<u64>().ok().map(|kib| kib * 1024)
    }
    #[cfg(target_os = "macos")]
    {
        use nix::sys::resource::{UsageWho, getrusage};
        // In bytes on macOS.
        getrusage(UsageWho::RUSAGE_SELF).ok().and_then(|used| used.max_rss().try_into().ok())
    }
    #[cfg(not(any(target_os = "linux", target_os = "macos")))]
    None
}

fn processors() -> System {
    System::new_with_specifics(RefreshKind::nothing().with_cpu(CpuRefreshKind::nothing()))
}

/// Cores that are switched on, whether this process may run on them or not, where the system says.
pub fn cores() -> Option<usize> {
    Some(processors().cpus().len()).filter(|count| *count > 0)
}

/// What the system calls its processor; empty where it does not say.
pub fn processor() -> String {
    processors().cpus().first().map_or(String::new(), |cpu| cpu.brand().trim().to_string())
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;
    use std::fs;

    /// What Linux tells in a file of its own, in kB.
    fn told(file: &str, key: &str) -> u64 {
        let text = fs::read_to_string(file).unwrap();
        let line = text.lines().find_map(|line| line.strip_prefix(key)).unwrap();
        line.split_whitespace().next().unwrap().parse::<u64>().unwrap() * 1024
    }

    #[test]
    fn memory_is_what_the_system_and_the_container_say() {
        let memory = Memory::now().unwrap();
        let swap = told("/proc/meminfo", "SwapTotal:");
        let limit = ["/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"];
        let limit = limit.iter().find_map(|file| fs::read_to_string(file).ok()?.trim().parse::<u64>().ok());
        let main = told("/proc/meminfo", "MemTotal:");
        assert_eq!(memory.total, limit.filter(|limit| *limit < main).unwrap_or(main + swap));
        assert!(0 < memory.available && memory.available <= memory.total.min(main), "{memory:?}");
    }

    #[test]
    fn the_peak_counts_what_was_touched_and_given_back() {
        let size = 64 << 20;
        drop(std::hint::black_box(vec![1u8; size]));
        assert!(peak_memory().unwrap() >= size as u64);
    }

    #[test]
    fn cores_are_those_that_are_switched_on() {
        let text = fs::read_to_string("/proc/cpuinfo").unwrap();
        assert_eq!(cores().unwrap(), text.lines().filter(|line| line.starts_with("processor")).count());
        if let Some(named) = text.lines().find_map(|line| line.strip_prefix("model name")) {
            assert_eq!(processor(), named.split_once(':').unwrap().1.trim());
        }
    }
}
