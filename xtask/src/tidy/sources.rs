//! The Rust sources of the workspace, each read and parsed once.
//!
//! Takes the root of the repository; gives [`Source`]s to the checks of the other files here.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

/// One file.
pub(crate) struct Source {
    /// From the root of the repository, such as `crates/mover/src/send/mod.rs`.
    pub(crate) path: String,
    /// The folder of the crate, such as `crates/mover`.
    pub(crate) package: String,
    pub(crate) text: String,
    pub(crate) syntax: syn::File,
    /// Whether it holds tests only: under `tests/`, or called `tests.rs` or `…_tests.rs`.
    pub(crate) is_test: bool,
}

impl Source {
    /// Parses one file.
    ///
    /// # Errors
    /// When the text is no Rust.
    pub(crate) fn parse(package: &str, path: &str, text: &str) -> Result<Source> {
        let name = path.rsplit('/').next().unwrap_or(path);
        let inside = path.strip_prefix(package).unwrap_or(path);
        let syntax = syn::parse_file(text)
            .map_err(|error| anyhow::anyhow!("{path}:{}: {error}", error.span().start().line))?;
        Ok(Source {
            path: path.into(),
            package: package.into(),
            text: text.into(),
            syntax,
            is_test: inside.contains("/tests/")
                || name == "tests.rs"
                || name.ends_with("_tests.rs"),
        })
    }

    /// The path of the module that the file is, such as `["send", "queue"]`; none for `lib.rs`,
    /// `main.rs`, and what does not lie under `src/`.
    pub(crate) fn module(&self) -> Option<Vec<String>> {
        let inside = self
            .path
            .strip_prefix(&self.package)?
            .strip_prefix("/src/")?
            .strip_suffix(".rs")?;
        let mut parts: Vec<String> = inside.split('/').map(str::to_owned).collect();
        if parts.last().is_some_and(|last| last == "mod") {
            parts.pop();
        }
        let root = matches!(&parts[..], [only] if only == "lib" || only == "main");
        (!root).then_some(parts)
    }
}

/// All sources of the workspace: `crates/*/{src,tests}` and `xtask/src`, by path.
///
/// # Errors
/// When a file cannot be read or parsed.
pub(crate) fn read(root: &Path) -> Result<Vec<Source>> {
    let mut sources = Vec::new();
    for package in packages(root)? {
        for folder in ["src", "tests"] {
            for path in rust_files(&root.join(&package).join(folder))? {
                let text = std::fs::read_to_string(&path)
                    .with_context(|| format!("read {}", path.display()))?;
                let name = path.strip_prefix(root).unwrap_or(&path).to_string_lossy();
                sources.push(Source::parse(&package, &name, &text)?);
            }
        }
    }
    Ok(sources)
}

/// The folders of the packages.
fn packages(root: &Path) -> Result<Vec<String>> {
    let entries = std::fs::read_dir(root.join("crates")).context("read crates/")?;
    let mut packages = vec!["xtask".to_owned()];
    for entry in entries {
        let name = entry?.file_name();
        packages.push(format!("crates/{}", name.to_string_lossy()));
    }
    packages.sort();
    Ok(packages)
}

/// All `.rs` files under a folder, sorted; none where there is no such folder.
fn rust_files(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    let Ok(entries) = std::fs::read_dir(folder) else {
        return Ok(files);
    };
    for entry in entries {
        let path = entry?.path();
        if path.is_dir() {
            files.extend(rust_files(&path)?);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

/// The sources of each package that lie under `src/` and are no tests.
pub(crate) fn by_package(sources: &[Source]) -> BTreeMap<&str, Vec<&Source>> {
    let mut packages: BTreeMap<&str, Vec<&Source>> = BTreeMap::new();
    for source in sources.iter().filter(|source| !source.is_test) {
        packages.entry(&source.package).or_default().push(source);
    }
    packages
}

/// Whether the attributes leave an item to tests: `#[cfg(test)]`, `#[test]`.
pub(crate) fn is_for_tests(attributes: &[syn::Attribute]) -> bool {
    attributes.iter().any(|attribute| {
        let path = attribute.path();
        path.is_ident("test")
            || (path.is_ident("cfg")
                && attribute
                    .parse_args::<syn::Path>()
                    .is_ok_and(|condition| condition.is_ident("test")))
    })
}

/// The attributes of an item.
pub(crate) fn attributes(item: &syn::Item) -> &[syn::Attribute] {
    use syn::Item;
    match item {
        Item::Const(item) => &item.attrs,
        Item::Enum(item) => &item.attrs,
        Item::ExternCrate(item) => &item.attrs,
        Item::Fn(item) => &item.attrs,
        Item::ForeignMod(item) => &item.attrs,
        Item::Impl(item) => &item.attrs,
        Item::Macro(item) => &item.attrs,
        Item::Mod(item) => &item.attrs,
        Item::Static(item) => &item.attrs,
        Item::Struct(item) => &item.attrs,
        Item::Trait(item) => &item.attrs,
        Item::TraitAlias(item) => &item.attrs,
        Item::Type(item) => &item.attrs,
        Item::Union(item) => &item.attrs,
        Item::Use(item) => &item.attrs,
        // `syn::Item` is not exhaustive.
        _ => &[],
    }
}
