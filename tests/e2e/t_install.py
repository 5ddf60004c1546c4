#!/usr/bin/env python3
"""`make install` and `make uninstall`: the program runs from there, from another folder, moved, and as a normal user."""
from harness import *

NOBODY = 65534
ROOM = tempfile.mkdtemp(prefix="mpt-install-", dir="/tmp")
os.chmod(ROOM, 0o755)


def make(*arguments):
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("MAKE", "MFLAGS"))}
    options = [f"BUILD={os.path.relpath(BUILD, TOP)}"]
    if os.environ.get("SANITIZE"):
        options.append(f"SANITIZE={os.environ['SANITIZE']}")
    done = subprocess.run(["make", "-s", *arguments, *options], cwd=TOP, env=environment, capture_output=True, text=True,
                          timeout=120 * SLOW)
    equal(done.returncode, 0, f"make {arguments}: {done.stdout}{done.stderr}")


def files(folder):
    return sorted(os.path.relpath(os.path.join(top, f), folder) for top, _, names in os.walk(folder) for f in names)


def install():
    old = os.umask(0o077)  # what is installed is for everybody all the same
    try:
        make("install", f"DESTDIR={ROOM}/pkg", "PREFIX=/opt/mpi serve")
    finally:
        os.umask(old)
    tree = os.path.join(ROOM, "pkg/opt/mpi serve")
    for top, folders, names in os.walk(tree):
        os.chmod(top, 0o755)
        for name in names:
            mode = os.stat(os.path.join(top, name)).st_mode & 0o777
            check(mode in (0o644, 0o755), f"{name} has mode {mode:o}")
    return tree


def moved():
    tree = os.path.join(ROOM, "moved")
    if not os.path.exists(tree):
        shutil.copytree(install(), tree)
        shutil.rmtree(os.path.join(ROOM, "pkg"))
    return tree


def all_is_there_and_nothing_else():
    found = files(install())
    wanted = {"bin/mpiserve", "share/mpiserve/README.md", "share/mpiserve/jobs/demo.yaml", "share/mpiserve/jobs/README.md",
              "share/mpiserve/jobs/schema.json", "share/mpiserve/jobs/demo-model/model.safetensors",
              "share/mpiserve/jobs/demo-model/tokenizer.json", "share/mpiserve/jobs/demo-model/config.json"}
    wanted |= {f"share/mpiserve/slurm/{f}" for f in files(os.path.join(TOP, "slurm"))}
    equal(wanted - set(found), set(), "missing")
    equal([f for f in found if "train" in f or f.endswith((".py", ".o", ".pyc"))], [], "not for users")


def uninstall_leaves_what_is_not_its_own():
    tree = install()
    mine = os.path.join(tree, "share/mpiserve/jobs/mine.yaml")
    with open(mine, "w", encoding="utf-8") as f:
        f.write("port: 0\n")
    make("uninstall", f"DESTDIR={ROOM}/pkg", "PREFIX=/opt/mpi serve")
    equal(files(tree), ["share/mpiserve/jobs/mine.yaml"])
    os.remove(mine)
    install()
    make("uninstall", f"DESTDIR={ROOM}/pkg", "PREFIX=/opt/mpi serve")
    equal(files(tree), [])
    check(not os.path.exists(os.path.join(tree, "share/mpiserve")), "the folder is left")
    shutil.rmtree(os.path.join(ROOM, "pkg"))


def user():
    """A user without rights: another one for root, else ourselves."""
    return NOBODY if os.getuid() == 0 else os.getuid()


def a_normal_user_from_another_folder():
    program = os.path.join(moved(), "bin/mpiserve")
    with Job(program=program, model=None, ranks=2, cwd="/", user=user(), env={"HOME": "/nonexistent"}) as job:
        equal({os.stat(f"/proc/{p.pid}").st_uid for p in job.processes()}, {user()}, "whose processes")
        equal(job.get("/v1/models").json["data"][0]["id"], "demo-model")
        check(content(job.chat("What is 17 + 25?")), "an answer")
        job.signal(signal.SIGTERM)
        equal(job.wait(), 0)
        equal(job.leftovers(), [])


def the_installed_job_file():
    tree = moved()
    link = os.path.join(ROOM, "link")  # as in ~/bin
    os.symlink(os.path.join(tree, "bin/mpiserve"), link)
    with Job(program=link, model=os.path.join(tree, "share/mpiserve/jobs/demo.yaml"), ranks=1, cwd=ROOM, user=user()) as job:
        equal(job.get("/v1/models").json["data"][0]["id"], "demo")
        job.signal(signal.SIGTERM)
        equal(job.wait(), 0)


def without_its_files_it_says_so():
    alone = os.path.join(ROOM, "mpiserve")
    shutil.copy(PROGRAM, alone)
    done = subprocess.run([alone, "up"], capture_output=True, text=True, timeout=20 * SLOW, cwd="/")
    equal(done.returncode, 2)
    check(f"{ROOM}/jobs/demo-model" in done.stderr and "share/mpiserve/jobs/demo-model" in done.stderr, done.stderr)


try:
    run(all_is_there_and_nothing_else, uninstall_leaves_what_is_not_its_own, a_normal_user_from_another_folder,
        the_installed_job_file, without_its_files_it_says_so)
finally:
    shutil.rmtree(ROOM, ignore_errors=True)
