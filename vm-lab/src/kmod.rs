//! The stock kernel's own modules: which are needed, and as plain ELF files.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use goblin::elf::Elf;

use crate::error::{Context, LabError, Result};
use crate::kernels::Kernel;

/// A module in the order of loading.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct StockModule {
    pub(crate) name: String,
    pub(crate) content: Vec<u8>,
}

/// The modules that must be loaded, in order, for `wanted` to work. What is
/// built into the kernel is left out.
pub(crate) fn resolve(kernel: &Kernel, wanted: &[&str]) -> Result<Vec<StockModule>> {
    let dir = kernel.modules_dir();
    let builtin = fs::read_to_string(dir.join("modules.builtin"))
        .context("reading", &dir.join("modules.builtin"))?;
    let builtin: Vec<String> =
        builtin.lines().filter_map(|line| module_name(Path::new(line))).collect();
    let mut files = BTreeMap::new();
    index(&dir.join("kernel"), &mut files)?;
    let mut loaded = Vec::new();
    for name in wanted {
        visit(&name.replace('-', "_"), &builtin, &files, &mut loaded)?;
    }
    Ok(loaded)
}

fn visit(
    name: &str,
    builtin: &[String],
    files: &BTreeMap<String, PathBuf>,
    loaded: &mut Vec<StockModule>,
) -> Result<()> {
    if builtin.iter().any(|known| known == name) || loaded.iter().any(|module| module.name == name)
    {
        return Ok(());
    }
    let path = files
        .get(name)
        .ok_or_else(|| LabError::Unsupported(format!("the kernel has no module `{name}`")))?;
    let content = read_plain(path)?;
    for dependency in dependencies(&content, path)? {
        visit(&dependency, builtin, files, loaded)?;
    }
    loaded.push(StockModule { name: name.to_owned(), content });
    Ok(())
}

/// `kernel/drivers/char/hw_random/virtio-rng.ko.xz` is `virtio_rng`.
fn module_name(path: &Path) -> Option<String> {
    let name = path.file_name()?.to_str()?;
    let (stem, _) = name.split_once(".ko")?;
    Some(stem.replace('-', "_"))
}

fn index(dir: &Path, files: &mut BTreeMap<String, PathBuf>) -> Result<()> {
    for entry in fs::read_dir(dir).context("reading", dir)? {
        let entry = entry.context("reading", dir)?;
        let path = entry.path();
        if entry.file_type().context("reading", &path)?.is_dir() {
            index(&path, files)?;
        } else if let Some(name) = module_name(&path) {
            files.insert(name, path);
        }
    }
    Ok(())
}

/// The module's ELF file, decompressed where Debian compresses it.
fn read_plain(path: &Path) -> Result<Vec<u8>> {
    let program = match path.extension().and_then(|extension| extension.to_str()) {
        Some("xz") => "xz",
        Some("zst") => "zstd",
        Some("gz") => "gzip",
        _ => return fs::read(path).context("reading", path),
    };
    let output =
        Command::new(program).args(["--decompress", "--stdout"]).arg(path).output().map_err(
            |error| LabError::Setup(format!("`{program}`, needed for {}: {error}", path.display())),
        )?;
    if output.status.success() {
        Ok(output.stdout)
    } else {
        Err(LabError::Command {
            command: format!("{program} --decompress {}", path.display()),
            status: output.status.to_string(),
            output: String::from_utf8_lossy(&output.stderr).into_owned(),
        })
    }
}

/// The `depends=` line of a module's `.modinfo` section.
fn dependencies(content: &[u8], path: &Path) -> Result<Vec<String>> {
    let unusable =
        |why: String| LabError::Unsupported(format!("kernel module {}: {why}", path.display()));
    let elf = Elf::parse(content).map_err(|error| unusable(error.to_string()))?;
    let info = elf
        .section_headers
        .iter()
        .find(|section| elf.shdr_strtab.get_at(section.sh_name) == Some(".modinfo"))
        .and_then(|section| content.get(section.file_range()?))
        .ok_or_else(|| unusable("no .modinfo section".into()))?;
    Ok(parse_depends(info))
}

fn parse_depends(info: &[u8]) -> Vec<String> {
    info.split(|&byte| byte == 0)
        .filter_map(|field| field.strip_prefix(b"depends="))
        .flat_map(|list| list.split(|&byte| byte == b','))
        .filter(|name| !name.is_empty())
        .map(|name| String::from_utf8_lossy(name).replace('-', "_"))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_lose_folders_suffixes_and_dashes() {
        assert_eq!(module_name(Path::new("kernel/a/virtio-rng.ko.xz")).unwrap(), "virtio_rng");
        assert_eq!(module_name(Path::new("kernel/a/virtio_pci.ko")).unwrap(), "virtio_pci");
        assert_eq!(module_name(Path::new("modules.order")), None);
    }

    #[test]
    fn dependencies_are_split() {
        assert_eq!(
            parse_depends(b"license=GPL\0depends=virtio,virtio-ring\0name=x\0"),
            ["virtio", "virtio_ring"]
        );
        assert!(parse_depends(b"depends=\0name=x\0").is_empty());
    }
}
