//! Building out-of-tree kernel modules against a stock kernel's headers.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use sha2::{Digest, Sha256};

use crate::apt;
use crate::cache::{self, FileLock, PendingDir};
use crate::command;
use crate::error::{Context, LabError, Result};
use crate::kernels::{self, Kernel};
use crate::prerequisites;

/// Changes whenever modules must be rebuilt although their sources are the same.
const RECIPE: &str = "1";

/// Compiler and make settings: warnings are errors. No BTF: it needs pahole
/// and helps only tracers.
const MAKE_SETTINGS: [&str; 2] = ["KCFLAGS=-Werror", "CONFIG_DEBUG_INFO_BTF_MODULES="];

impl Kernel {
    /// Builds the modules of a source folder with this kernel's build system.
    ///
    /// The folder has a `Makefile` or `Kbuild` as for `make M=`; it is copied,
    /// nothing is written to it. The result is kept below cargo's target folder and reused while the
    /// sources do not change.
    ///
    /// # Errors
    /// [`LabError::ModuleBuild`] with the compiler's messages for every error and every warning;
    /// [`LabError::Setup`] when the kernel's compiler is missing and cannot be installed.
    pub fn build_module(&self, source_dir: &Path) -> Result<Vec<PathBuf>> {
        self.build_module_with(source_dir, &[])
    }

    /// [`build_module`](Self::build_module) with more settings (`NAME=VALUE`) on make's command
    /// line.
    ///
    /// # Errors
    /// As [`build_module`](Self::build_module).
    pub fn build_module_with(&self, source_dir: &Path, settings: &[&str]) -> Result<Vec<PathBuf>> {
        let sources = sources(source_dir)?;
        let key = key(&sources, &self.identity(), settings);
        let store = cache::target_dir()?.join("vm-lab/modules");
        let store = store.join(self.release());
        let destination = store.join(&key);
        // One build at a time: make brings its own parallelism.
        let _lock = FileLock::acquire(&store.join(".lock"))?;
        if !destination.exists() {
            cache::remove_leftovers(&store)?;
            let compiler = self.ensure_compiler()?;
            let pending = PendingDir::new(&destination)?;
            for (name, content) in &sources {
                let path = pending.path().join(name);
                if let Some(parent) = path.parent() {
                    fs::create_dir_all(parent).context("creating", parent)?;
                }
                fs::write(&path, content).context("writing", &path)?;
            }
            self.make(&compiler, source_dir, pending.path(), settings)?;
            pending.publish()?;
        }
        let modules = built_modules(&destination)?;
        if modules.is_empty() {
            return Err(LabError::Unsupported(format!(
                "{} builds no module: its Makefile sets no obj-m",
                source_dir.display()
            )));
        }
        Ok(modules)
    }

    /// The compiler that the kernel was built with; installed if missing.
    fn ensure_compiler(&self) -> Result<String> {
        let compiler = kernels::compiler(self)?;
        if prerequisites::find_program(&compiler).is_none() {
            apt::install(&[kernels::compiler_package(&compiler).to_owned()])?;
        }
        Ok(compiler)
    }

    fn make(
        &self,
        compiler: &str,
        source_dir: &Path,
        build_dir: &Path,
        settings: &[&str],
    ) -> Result<()> {
        tracing::info!(source = %source_dir.display(), release = self.release(), "building kernel module");
        let mut make = Command::new("make");
        make.env("LC_ALL", "C")
            // Settings of a make that runs the tests are not for this one.
            .env_remove("MAKEFLAGS")
            .env_remove("MAKELEVEL")
            .arg("-C")
            .arg(self.headers())
            .arg(format!("M={}", build_dir.display()))
            .arg(format!("CC={compiler}"))
            .arg(format!("-j{}", std::thread::available_parallelism().map_or(1, usize::from)))
            .args(MAKE_SETTINGS)
            .args(settings)
            .arg("modules");
        let output = make.output().map_err(|error| {
            LabError::Setup(format!(
                "running `make`: {error}; `ub_vm_lab::prerequisites()` installs it"
            ))
        })?;
        if !output.status.success() || has_warning(&output) {
            return Err(LabError::ModuleBuild {
                source_dir: source_dir.to_owned(),
                release: self.release().to_owned(),
                output: command::tail_of(&output).replace(&format!("{}/", build_dir.display()), ""),
            });
        }
        Ok(())
    }
}

/// modpost and objtool warn without failing.
fn has_warning(output: &Output) -> bool {
    [&output.stdout, &output.stderr].iter().any(|stream| {
        String::from_utf8_lossy(stream).lines().any(|line| line.to_lowercase().contains("warning:"))
    })
}

/// All source files below `dir`, sorted, by relative path.
fn sources(dir: &Path) -> Result<Vec<(PathBuf, Vec<u8>)>> {
    let mut found = Vec::new();
    let mut folders = vec![PathBuf::new()];
    while let Some(folder) = folders.pop() {
        let path = dir.join(&folder);
        for entry in fs::read_dir(&path).context("reading", &path)? {
            let entry = entry.context("reading", &path)?;
            let name = folder.join(entry.file_name());
            if entry.file_type().context("reading", &entry.path())?.is_dir() {
                folders.push(name);
            } else if !is_build_product(&name) {
                found.push((name, fs::read(entry.path()).context("reading", &entry.path())?));
            }
        }
    }
    found.sort();
    Ok(found)
}

/// What a kernel build leaves behind, should someone have built in the tree.
fn is_build_product(path: &Path) -> bool {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    [".o", ".ko", ".mod", ".mod.c", ".cmd", ".a", ".d", "~"]
        .iter()
        .any(|suffix| name.ends_with(suffix))
        || ["Module.symvers", "modules.order"].contains(&name.as_ref())
}

fn key(sources: &[(PathBuf, Vec<u8>)], kernel: &str, settings: &[&str]) -> String {
    let mut hash = Sha256::new();
    // Lengths keep the parts apart.
    let mut add = |bytes: &[u8]| {
        hash.update((bytes.len() as u64).to_le_bytes());
        hash.update(bytes);
    };
    add(RECIPE.as_bytes());
    add(kernel.as_bytes());
    for setting in MAKE_SETTINGS.iter().chain(settings) {
        add(setting.as_bytes());
    }
    for (name, content) in sources {
        add(name.as_os_str().as_encoded_bytes());
        add(content);
    }
    hash.finalize().iter().take(16).map(|byte| format!("{byte:02x}")).collect()
}

/// The modules in a build folder, in the order in which the makefile names them.
fn built_modules(dir: &Path) -> Result<Vec<PathBuf>> {
    let order = dir.join("modules.order");
    let text = match fs::read_to_string(&order) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other.context("reading", &order)?,
    };
    // 6.1 lists absolute paths of the build folder's first name, 6.12 relative
    // ones. Both end in the file's name, and modules lie at the top.
    text.lines()
        .filter_map(|line| Path::new(line).file_name())
        .map(|name| {
            let path = dir.join(name).with_extension("ko");
            if path.exists() {
                Ok(path)
            } else {
                Err(LabError::Unsupported(format!(
                    "{} is not at the top of the module's folder",
                    name.to_string_lossy()
                )))
            }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn key_depends_on_names_contents_kernel_and_settings_only() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("sub")).unwrap();
        fs::write(dir.path().join("a.c"), "1").unwrap();
        fs::write(dir.path().join("sub/b.h"), "2").unwrap();
        let first = key(&sources(dir.path()).unwrap(), "6.1", &[]);
        fs::write(dir.path().join("a.o"), "product").unwrap();
        fs::write(dir.path().join(".a.o.cmd"), "product").unwrap();
        assert_eq!(key(&sources(dir.path()).unwrap(), "6.1", &[]), first);
        assert_ne!(key(&sources(dir.path()).unwrap(), "6.12", &[]), first);
        assert_ne!(key(&sources(dir.path()).unwrap(), "6.1", &["A=B"]), first);
        fs::write(dir.path().join("sub/b.h"), "3").unwrap();
        assert_ne!(key(&sources(dir.path()).unwrap(), "6.1", &[]), first);
    }
}
