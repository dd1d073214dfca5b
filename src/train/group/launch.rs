//! Whether this process is one of several that an MPI launcher started: what the environment says.

use std::ffi::OsString;

/// What tells of a launcher, and what it counts its processes in: Open MPI's `mpirun`; MPICH's and Intel's, and
/// `srun --mpi=pmi2`; `srun --mpi=pmix`, where PMIx itself counts nothing and a shell that Slurm started is one process, too;
/// anything else that speaks PMIx.
const VARIABLES: [(&str, &str); 3] = [
    ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"),
    ("PMI_RANK", "PMI_SIZE"),
    ("PMIX_RANK", "SLURM_STEP_NUM_TASKS"),
];

/// How this process was started.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Launch {
    /// The variable that says so.
    pub variable: &'static str,
    /// Processes of the job, where the launcher says.
    pub size: Option<usize>,
}

impl Launch {
    /// Libraries that such a launcher goes with, the likeliest first.
    pub fn libraries(&self) -> Vec<OsString> {
        if let Some(path) = std::env::var_os("TERNLM_MPI") {
            return vec![path];
        }
        let open_mpi = ["libmpi.so.40", "libmpi.40.dylib", "libmpi.dylib"];
        let mpich = ["libmpich.so.12", "libmpi.so.12", "libmpich.12.dylib", "libmpi.12.dylib", "libmpich.so"];
        let (first, then): (&[&str], &[&str]) =
            if self.variable == "PMI_RANK" { (&mpich, &open_mpi) } else { (&open_mpi, &mpich) };
        first.iter().chain(then).chain(&["libmpi.so"]).map(OsString::from).collect()
    }
}

/// What counts the processes of this machine: Open MPI's and MPICH's launchers.
const LOCAL: [&str; 2] = ["OMPI_COMM_WORLD_LOCAL_SIZE", "MPI_LOCALNRANKS"];

/// Threads for a process that may run on `cores` of the machine's `all`: these, or a share where every process of this machine may
/// run on more than that.
pub fn threads_of_each(cores: usize, all: usize) -> usize {
    share_of(cores, all, local_processes())
}

/// Processes of the job on this machine, where the launcher says.
pub fn local_processes() -> usize {
    let count = |name: &str| std::env::var(name).ok()?.parse().ok();
    LOCAL.into_iter().find_map(count).unwrap_or(1).max(1)
}

fn share_of(cores: usize, all: usize, processes: usize) -> usize {
    cores.min(all / processes.max(1)).max(1)
}

/// How this process was started, unless it is alone.
pub fn launched() -> Option<Launch> {
    launch_of(|name| std::env::var(name).ok())
}

fn launch_of(variable: impl Fn(&str) -> Option<String>) -> Option<Launch> {
    let number = |name: &str| variable(name)?.parse::<usize>().ok();
    VARIABLES.into_iter().find_map(|(rank, size)| {
        number(rank)?;
        let launch = Launch { variable: rank, size: number(size) };
        (launch.size != Some(1)).then_some(launch)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processes_share_out_cores_that_are_not_theirs_alone() {
        assert_eq!(share_of(16, 16, 1), 16);
        assert_eq!(share_of(16, 16, 4), 4, "not bound");
        assert_eq!(share_of(4, 16, 4), 4, "bound to four each");
        assert_eq!(share_of(1, 2, 2), 1);
        assert_eq!(share_of(2, 2, 4), 1, "more processes than cores");
    }

    #[test]
    fn a_launcher_is_told_by_what_it_sets_and_one_process_is_alone() {
        let of = |set: &[(&str, &str)]| {
            launch_of(|name| set.iter().find(|(n, _)| *n == name).map(|(_, value)| value.to_string()))
        };
        assert_eq!(of(&[]), None);
        assert_eq!(
            of(&[("OMPI_COMM_WORLD_SIZE", "4")]),
            None,
            "a size without a rank is left over from elsewhere"
        );
        let four = of(&[("OMPI_COMM_WORLD_SIZE", "4"), ("OMPI_COMM_WORLD_RANK", "2"), ("PMIX_RANK", "2")]);
        assert_eq!(four, Some(Launch { variable: "OMPI_COMM_WORLD_RANK", size: Some(4) }));
        assert_eq!(of(&[("PMI_RANK", "0"), ("PMI_SIZE", "1")]), None);
        assert_eq!(of(&[("PMI_RANK", "x"), ("PMI_SIZE", "2")]), None);
        let hydra = of(&[("PMI_RANK", "0"), ("PMI_SIZE", "2")]).unwrap();
        assert_eq!(hydra.libraries()[0], "libmpich.so.12");
        let pmix = of(&[("PMIX_RANK", "1")]).unwrap();
        assert_eq!((pmix.size, pmix.libraries()[0].to_str()), (None, Some("libmpi.so.40")));
        let slurm = |tasks| of(&[("PMIX_RANK", "0"), ("SLURM_STEP_NUM_TASKS", tasks)]);
        assert_eq!(slurm("1"), None, "a shell, or one process");
        assert_eq!(slurm("8").unwrap().size, Some(8));
    }
}
