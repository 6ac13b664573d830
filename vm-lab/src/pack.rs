//! From a [`Job`] to the guest's file tree and instructions.

use std::path::{Path, PathBuf};

use crate::error::{LabError, Result};
use crate::initramfs::Tree;
use crate::job::Job;
use crate::kernels::Kernel;
use crate::kmod;
use crate::prerequisites::find_program;
use crate::protocol::{GuestJob, GuestModule, JOB_PATH, PROTOCOL};

/// Stock modules that carry the frames to the host, where the kernel does not have
/// them built in.
const TRANSPORT: [&str; 2] = ["virtio_pci", "virtio_console"];

/// Folders of the host whose programs keep their path in the guest.
const SYSTEM_DIRS: [&str; 4] = ["/bin", "/sbin", "/usr/bin", "/usr/sbin"];

/// How many times slower than a stock kernel this one may be: see [`Job::env`].
const SLOWNESS: &str = "UB_LAB_SLOWNESS";
const ENVIRONMENT: [(&str, &str); 5] = [
    ("PATH", "/usr/bin:/usr/sbin"),
    ("HOME", "/root"),
    ("USER", "root"),
    ("TERM", "dumb"),
    ("LC_ALL", "C.UTF-8"),
];

/// The guest's file tree with init, the job's files and its description.
pub(crate) fn tree(job: &Job, kernel: &Kernel, init: &Path, slowness: u32) -> Result<Tree> {
    let mut tree = Tree::with_base()?;
    tree.add_file(init, Path::new("/init"))?;

    let mut wanted: Vec<&str> = TRANSPORT.to_vec();
    wanted.extend(job.stock_modules.iter().map(String::as_str));
    let mut drivers = Vec::new();
    for module in kmod::resolve(kernel, &wanted)? {
        let path = format!("/ub/drivers/{}.ko", module.name);
        tree.add_bytes(Path::new(&path), module.content, 0o644)?;
        drivers.push(path);
    }

    let mut modules = Vec::new();
    for module in &job.modules {
        let name = module.file.file_name().and_then(|name| name.to_str()).ok_or_else(|| {
            LabError::Unsupported(format!("module file {}", module.file.display()))
        })?;
        let path = format!("/ub/modules/{name}");
        tree.add_plain_file(&module.file, Path::new(&path))?;
        if module.load {
            modules.push(GuestModule { path, parameters: module.parameters.clone() });
        }
    }

    let mut commands = Vec::new();
    for program in &job.programs {
        let (source, place) = place_program(program)?;
        tree.add_file(&source, &place)?;
        commands.push(place);
    }
    for (source, place) in &job.files {
        tree.add_file(source, place)?;
        commands.push(place.clone());
    }
    for directory in job.directories.iter().chain([&job.cwd]) {
        tree.add_directory(directory)?;
    }
    let command = add_command(job, &commands, &mut tree)?;

    let mut env: std::collections::BTreeMap<String, String> =
        ENVIRONMENT.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
    env.insert(SLOWNESS.into(), slowness.to_string());
    env.extend(job.env.clone());
    let guest_job = GuestJob {
        protocol: PROTOCOL,
        drivers,
        modules,
        unload_modules: job.unload_modules,
        command,
        env,
        cwd: text(&job.cwd)?,
        collect: job.collect.iter().map(|path| text(path)).collect::<Result<_>>()?,
    };
    let json =
        serde_json::to_vec_pretty(&guest_job).map_err(|error| LabError::Bug(error.to_string()))?;
    tree.add_bytes(Path::new(JOB_PATH), json, 0o644)?;
    Ok(tree)
}

/// The command for the guest; its program joins the tree if it comes from the host.
fn add_command(job: &Job, present: &[PathBuf], tree: &mut Tree) -> Result<Vec<String>> {
    let Some((program, arguments)) = job.command.split_first() else { return Ok(Vec::new()) };
    let path = Path::new(program);
    let is_present =
        |place: &PathBuf| place == path || (!program.contains('/') && place.ends_with(path));
    let place = match present.iter().find(|place| is_present(place)) {
        Some(place) => place.clone(),
        None if find_program(program).is_some() => {
            let (source, place) = place_program(path)?;
            tree.add_file(&source, &place)?;
            place
        }
        // Perhaps in a folder of the job; the guest says if not.
        None => path.to_owned(),
    };
    Ok(std::iter::once(text(&place)?).chain(arguments.iter().cloned()).collect())
}

/// Where a program is on the host and where it goes in the guest.
fn place_program(program: &Path) -> Result<(PathBuf, PathBuf)> {
    let missing =
        || LabError::Setup(format!("program {} not found on this host", program.display()));
    let source = find_program(program.to_str().ok_or_else(missing)?).ok_or_else(missing)?;
    let parent = source.parent().unwrap_or(Path::new(""));
    let place = if SYSTEM_DIRS.iter().any(|dir| parent == Path::new(dir)) {
        source.clone()
    } else {
        Path::new("/usr/bin").join(source.file_name().ok_or_else(missing)?)
    };
    Ok((source, place))
}

fn text(path: &Path) -> Result<String> {
    path.to_str()
        .map(str::to_owned)
        .ok_or_else(|| LabError::Unsupported(format!("guest path {} is not UTF-8", path.display())))
}
