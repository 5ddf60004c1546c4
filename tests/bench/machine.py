"""The machine on which figures were measured, and how busy it was with other work."""
import os
import platform
import re
import subprocess
import time


def first_line(command):
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, stdin=subprocess.DEVNULL)
        return (done.stdout or done.stderr).strip().splitlines()[0]
    except (OSError, IndexError, subprocess.TimeoutExpired):
        return None


def field(path, name):
    try:
        with open(path) as f:
            found = re.search(rf"^{name}\s*:\s*(.+)$", f.read(), re.MULTILINE)
        return found.group(1).strip() if found else None
    except OSError:
        return None


def cpu_seconds():
    """Seconds since boot of all CPUs together: busy, idle."""
    with open("/proc/stat") as f:
        ticks = [int(x) for x in f.readline().split()[1:9]]
    hz = os.sysconf("SC_CLK_TCK")
    idle = ticks[3] + ticks[4]
    return (sum(ticks) - idle) / hz, idle / hz


def busy_share(seconds):
    """Share of all CPUs that was busy during that time."""
    busy, idle = cpu_seconds()
    time.sleep(seconds)
    busy, idle = cpu_seconds()[0] - busy, cpu_seconds()[1] - idle
    return busy / max(busy + idle, 1e-9)


def describe(mpirun, compiler):
    memory = field("/proc/meminfo", "MemTotal")
    flags = (field("/proc/cpuinfo", "flags") or "").split()
    return {
        "cpu": field("/proc/cpuinfo", "model name") or platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_mb": int(memory.split()[0]) // 1024 if memory else None,
        "virtual": "hypervisor" in flags,
        "kernel": f"{platform.system()} {platform.release()}",
        "isa": None,  # the program's own words, filled in by the first job
        "compute": None,
        "mpi": first_line([mpirun, "--version"]),
        "compiler": first_line([compiler, "--version"]),
        "load_average": round(os.getloadavg()[0], 2),
    }


def print_machine(m, out):
    print(f"{m['cpu']}, {m['cores']} cores{' (virtual)' if m['virtual'] else ''}, {m['memory_mb']} MB, {m['kernel']}",
          file=out)
    print(f"{m['mpi']}; {m['compiler']}; kernels {m['isa'] or '?'}, compute {m['compute'] or '?'} by default", file=out)
