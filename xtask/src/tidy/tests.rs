//! Each check on small sources: what is good passes, what is not is found.

use super::dependencies::{self, Dependency, Rules, is_allowed};
use super::shape::Shape;
use super::sources::Source;
use super::{map, uses};

const PACKAGE: &str = "crates/small";

fn source(path: &str, text: &str) -> Source {
    Source::parse(PACKAGE, &format!("{PACKAGE}/{path}"), text).unwrap()
}

fn findings(path: &str, text: &str) -> Vec<String> {
    Shape::of(&[source(path, text)]).findings()
}

fn check_found(found: &[String], words: &[&str]) {
    assert_eq!(found.len(), words.len(), "{found:?}");
    for (found, words) in found.iter().zip(words) {
        assert!(found.contains(words), "{found:?} lacks {words:?}");
    }
}

fn function(name: &str, lines: usize) -> String {
    format!("fn {name}() {{\n{}}}\n", "    f();\n".repeat(lines - 2))
}

#[test]
fn a_function_has_80_lines_at_most_and_tests_may_have_more() {
    check_found(&findings("src/a.rs", &function("good", 80)), &[]);
    check_found(
        &findings("src/a.rs", &function("long", 81)),
        &["src/a.rs:1: 81 lines of the function long"],
    );
    let method = format!("impl A {{\n{}}}\n", function("method", 81));
    check_found(&findings("src/a.rs", &method), &["function method"]);
    let tests = format!("#[cfg(test)]\nmod tests {{\n{}}}\n", function("test", 81));
    check_found(&findings("src/a.rs", &tests), &[]);
    check_found(&findings("tests/a.rs", &function("test", 81)), &[]);
}

#[test]
fn a_struct_with_methods_has_20_fields_at_most() {
    let wide = |fields: usize| {
        let fields: String = (0..fields).map(|at| format!("f{at}: u8,\n")).collect();
        format!("struct Wide {{\n{fields}}}\n")
    };
    let methods = "impl Wide { fn f(&self) {} }\n";
    check_found(&findings("src/a.rs", &wide(21)), &[]);
    check_found(
        &findings("src/a.rs", &format!("{}{methods}", wide(20))),
        &[],
    );
    check_found(
        &findings("src/a.rs", &format!("{}{methods}", wide(21))),
        &["21 fields of the struct Wide"],
    );
    // The methods may stand in another file of the room.
    let apart = [
        source("src/room/a.rs", &wide(21)),
        source("src/room/b.rs", methods),
    ];
    check_found(&Shape::of(&apart).findings(), &["struct Wide"]);
}

#[test]
fn a_file_has_1000_lines_at_most_and_a_comment_100_columns() {
    check_found(&findings("src/a.rs", &"//\n".repeat(1_000)), &[]);
    check_found(
        &findings("tests/a.rs", &"//\n".repeat(1_001)),
        &["1001 lines of the file"],
    );
    check_found(
        &findings("src/a.rs", &format!("// {}\n", "x".repeat(97))),
        &[],
    );
    check_found(
        &findings("src/a.rs", &format!("// {}\n", "x".repeat(98))),
        &["src/a.rs:1: 101 columns"],
    );
    let behind = format!("const A: u8 = 1; // {}\n", "x".repeat(98));
    check_found(&findings("src/a.rs", &behind), &["columns of a comment"]);
    let text = format!("const A: &str = \"{} // x\";\n", "x".repeat(98));
    check_found(&findings("src/a.rs", &text), &[]);
}

#[test]
fn public_items_are_counted_outside_tests() {
    let text = "pub struct A { pub a: u8 }\nimpl A { pub fn f(&self) {} }\npub(crate) fn g() {}\n\
                #[cfg(test)]\nmod tests { pub fn h() {} }\n";
    assert_eq!(Shape::of(&[source("src/a.rs", text)]).public[PACKAGE], 2);
}

fn graph(files: &[(&str, &str)]) -> uses::Uses {
    let sources: Vec<Source> = files
        .iter()
        .map(|(path, text)| source(path, text))
        .collect();
    uses::of(&sources.iter().collect::<Vec<_>>())
}

fn check_circle(files: &[(&str, &str)], circle: &[&str]) {
    let found: Vec<Vec<String>> = uses::circles(&graph(files))
        .into_iter()
        .map(|circle| circle.iter().map(|module| module.join("::")).collect())
        .collect();
    match circle {
        [] => assert!(found.is_empty(), "{found:?}"),
        circle => assert_eq!(found, [circle.to_vec()]),
    }
}

#[test]
fn files_that_use_each_other_are_a_circle_however_they_write_it() {
    let ways = [
        "use crate::a::A;",
        "use crate::{c, a::{self, A}};",
        "use super::a::A;",
        "fn f() { crate::a::f() }",
        "fn f() { assert!(g(crate::a::A)) }",
        "use crate::a;\nfn f(a: a::A) {}",
        "use crate::a as other;\nfn f() { g::<other::A>() }",
    ];
    for way in ways {
        check_circle(
            &[
                ("src/a.rs", "use crate::b::B;"),
                ("src/b.rs", way),
                ("src/c.rs", ""),
            ],
            &["a", "b"],
        );
    }
    check_circle(
        &[("src/a.rs", "use crate::b::B;"), ("src/b.rs", "fn f() {}")],
        &[],
    );
    check_circle(
        &[
            ("src/a.rs", "use crate::b::B;"),
            ("src/b.rs", "use crate::c::C;"),
            ("src/c.rs", "use crate::a::A;"),
        ],
        &["a", "b", "c"],
    );
}

#[test]
fn a_child_uses_its_siblings_and_not_its_parent() {
    check_circle(
        &[
            ("src/a/mod.rs", "mod b;\nmod c;\npub(crate) use b::B;"),
            ("src/a/b.rs", "use super::c::C;"),
            ("src/a/c.rs", ""),
        ],
        &[],
    );
    check_circle(
        &[
            (
                "src/a/mod.rs",
                "mod b;\nmod c;\nstruct A;\nfn f() { b::g() }",
            ),
            ("src/a/b.rs", "use super::A;"),
            ("src/a/c.rs", ""),
        ],
        &["a", "a::b"],
    );
}

#[test]
fn tests_make_no_circle() {
    check_circle(
        &[
            ("src/a.rs", "use crate::b::B;"),
            ("src/b.rs", "#[cfg(test)]\nmod tests { use crate::a::A; }"),
        ],
        &[],
    );
}

#[test]
fn a_module_uses_those_that_the_root_declares_before_it() {
    let root = source(
        "src/lib.rs",
        "pub mod low;\n\npub mod high;\n#[cfg(test)]\nmod tests;",
    );
    let floors = uses::floors(&root);
    assert_eq!(floors, ["low", "high"]);
    let up = |low: &str, high: &str| {
        uses::up_the_stairs(
            &graph(&[("src/low.rs", low), ("src/high.rs", high)]),
            &floors,
        )
    };
    assert_eq!(up("", "use crate::low::L;"), []);
    assert_eq!(
        up("use crate::high::H;", ""),
        [(vec!["low".to_owned()], vec!["high".to_owned()])]
    );
}

#[test]
fn the_code_map_names_every_file_and_none_that_is_not_there() {
    let root = super::root();
    let sources = [
        Source::parse("xtask", "xtask/src/main.rs", "").unwrap(),
        Source::parse("xtask", "xtask/src/tidy/map.rs", "").unwrap(),
    ];
    let check = |map: &str, words: &[&str]| {
        let text =
            format!("# A\n\n## The code map\n\n```\n{map}```\n\n## B\n\n```\nanything\n```\n");
        check_found(&map::code_map(&root, &text, &sources), words);
    };
    check(
        "xtask/src/\n  main.rs — a\n  tidy/map.rs — b\nxtask/Cargo.toml — c\n",
        &[],
    );
    check("xtask/src/main.rs — a\nxtask/src/tidy/map.rs — b\n", &[]);
    check(
        "xtask/src/\n  main.rs — a\n",
        &["lacks xtask/src/tidy/map.rs"],
    );
    check(
        "xtask/src/\n  main.rs — a\n  tidy/map.rs — b\n  gone.rs — c\n",
        &["ARCHITECTURE.md:9: there is no xtask/src/gone.rs"],
    );
    check(
        "xtask/src/\n  main.rs — a\n  tidy/map.rs — b\n  main.rs — c\n",
        &["main.rs is named twice"],
    );
    check(
        "xtask/src/\n  main.rs — a\n  tidy/map.rs\n",
        &["neither", "lacks xtask/src/tidy/map.rs"],
    );
    check_found(&map::code_map(&root, "# A\n", &sources), &["no section"]);
}

#[test]
fn the_glossary_names_terms_rooms_and_claims_that_are_there() {
    let claims = "| claim | what |\n| --- | --- |\n| 1a, 24 | x |\n| 8-11 | y |\n";
    let read = |room: &str| (room == "src/room.rs").then(|| "struct PathCache; min_rtt".to_owned());
    let check = |rows: &str, words: &[&str]| {
        let text = format!("| term | meaning | room | claim |\n| --- | --- | --- | --- |\n{rows}");
        check_found(&map::glossary(&text, claims, read), words);
    };
    check("| path cache, min RTT | m | `src/room.rs` | 1a, 9 |\n", &[]);
    check("| path cache | m | `src/room.rs` | |\n", &[]);
    check(
        "| memory | m | `src/room.rs` | - |\n",
        &["term memory does not stand"],
    );
    check(
        "| path cache | m | `src/gone.rs` | |\n",
        &["there is no src/gone.rs"],
    );
    check(
        "| path cache | m | the room | |\n",
        &["no room in backticks"],
    );
    check(
        "| path cache | m | `src/room.rs` | 12 |\n",
        &["has no claim 12"],
    );
    check(
        "| path cache | m | `src/room.rs` |\n",
        &["has 4 cells, found 3"],
    );
    check_found(&map::glossary("no table", claims, read), &["no table"]);
}

#[test]
fn a_licence_is_allowed_if_one_way_through_the_expression_is() {
    let allowed = ["MIT", "Apache-2.0", "ISC"].map(str::to_owned);
    for good in [
        "MIT",
        "GPL-3.0 OR MIT",
        "MIT/Apache-2.0",
        "ISC AND (Apache-2.0 OR GPL-3.0)",
        "(MIT)",
    ] {
        assert!(is_allowed(good, &allowed), "{good}");
    }
    for bad in [
        "",
        "GPL-3.0",
        "MIT AND GPL-3.0",
        "(MIT",
        "MIT)",
        "GPL-3.0 OR MIT AND GPL-3.0",
    ] {
        assert!(!is_allowed(bad, &allowed), "{bad}");
    }
}

#[test]
fn dependencies_keep_the_rules() {
    let rules = Rules {
        licenses: vec!["MIT".into()],
        registries: vec!["https://registry".into()],
        banned: vec!["bad".into()],
        twice: vec!["old".into()],
    };
    let own = Dependency {
        name: "own".into(),
        license: "MIT".into(),
        rust_version: Some("1.88".into()),
        ..Dependency::default()
    };
    let other = |name: &str, version: &str| Dependency {
        name: name.into(),
        version: version.into(),
        license: "MIT".into(),
        source: Some("registry+https://registry".into()),
        rust_version: Some("1.88.0".into()),
    };
    let check = |others: Vec<Dependency>, words: &[&str]| {
        let all: Vec<Dependency> = std::iter::once(own.clone()).chain(others).collect();
        check_found(&dependencies::findings(&all, &rules), words);
    };
    check(
        vec![other("good", "1"), other("old", "1"), other("old", "2")],
        &[],
    );
    check(
        vec![other("twice", "1"), other("twice", "2")],
        &["versions 1, 2"],
    );
    check(vec![other("bad", "1")], &["bans it"]);
    let license = Dependency {
        license: "GPL-3.0".into(),
        ..other("a", "1")
    };
    check(vec![license], &["the licence is \"GPL-3.0\""]);
    let source = Dependency {
        source: Some("git+https://elsewhere".into()),
        ..other("a", "1")
    };
    check(vec![source], &["comes from git+https://elsewhere"]);
    let newer = Dependency {
        rust_version: Some("1.89".into()),
        ..other("a", "1")
    };
    check(vec![newer], &["needs rustc 1.89"]);
}
