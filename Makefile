# mpiserve:  make deps run      install what is missing, build, start 8 ranks with the demo model
#            make               build ./mpiserve
#            make deps check    all tests;  make check TESTS=tests/e2e/t_chat.py: some of them
#            make check-mpi5 (Open MPI 5)  soak (minutes)  fuzz  check-style  bench  clean
#            make install uninstall   PREFIX=/usr/local  DESTDIR=
#            make docs          option table -> README.md, jobs/schema.json, jobs/every-option.yaml
#            make CUDA=1        the same program with the CUDA backend;  make check-cuda: what nvcc says of its kernels
#            make check-gpu     the tests of that backend on a GPU of this machine (tests/gpu)
# Options:   CC=clang  SANITIZE=address,undefined  MPI_HOME=folder  V=1  ARGS="-n 4 MODEL" (run, bench)

ifeq ($(origin CC),default)
CC       := gcc
endif
BUILD    ?= build$(if $(SANITIZE),-san)
WERROR   ?= -Werror
OPT      ?= -O2
CFLAGS   ?= -g
PROGRAM  := $(if $(SANITIZE),$(BUILD)/mpiserve,mpiserve)
CPPFLAGS += -D_GNU_SOURCE -Iinclude -Isrc
STD      := -std=gnu11 -pthread -Wall -Wextra $(WERROR) $(OPT) -fno-math-errno -ffp-contract=off \
            $(if $(SANITIZE),-fsanitize=$(SANITIZE) -fno-omit-frame-pointer)
MPICC    ?= $(if $(MPI_HOME),$(MPI_HOME)/bin/mpicc,mpicc)
# Recursive on purpose: nothing is asked before a recipe needs it, so that `deps` can install it first.
MPI_CFLAGS = $(shell $(MPICC) --showme:compile)
MPI_LIBS   = $(shell $(MPICC) --showme:link)
LIBS       = $(MPI_LIBS) -lmicrohttpd -lhwloc -ljansson -lpcre2-8 -lutf8proc -lyaml -lm -ldl -pthread
Q        := $(if $(V),,@)
say       = $(if $(V),,@echo "  $(1)")

# With CUDA=1 nvcc compiles the kernels; cublasLt, NCCL and the driver are opened when an engine needs them (the runtime is linked
# statically and opens the driver itself), so that the program starts where they are not.
CUDA_HOME  ?= /usr/local/cuda
NVCC       ?= $(firstword $(wildcard $(CUDA_HOME)/bin/nvcc) nvcc)
CUDA_ARCHS ?= 80 90 100
NVCC_FLAGS  = -std=c++17 -O3 -g -Xcompiler -Wall $(CPPFLAGS) $(foreach a,$(CUDA_ARCHS),-gencode=arch=compute_$a,code=sm_$a) \
              -gencode=arch=compute_$(lastword $(CUDA_ARCHS)),code=compute_$(lastword $(CUDA_ARCHS))
KERNELS    := $(wildcard src/ops/cuda/*.cu)
LIBS       += $(if $(CUDA),-L$(CUDA_HOME)/lib64 -lcudart_static -lstdc++ -lrt)

SOURCES  := $(filter-out $(if $(CUDA),src/ops/cuda/without.c),$(wildcard src/*.c src/*/*.c src/*/*/*.c))
OBJECTS  := $(SOURCES:%.c=$(BUILD)/%.o) $(if $(CUDA),$(KERNELS:%=$(BUILD)/%.o))
LIBRARY  := $(BUILD)/libmpiserve.a
UNIT     := $(patsubst %.c,$(BUILD)/%,$(wildcard tests/unit/test_*.c))
# Programs that tests start: MPI programs, and stand-ins for the real one.
HELPERS  := $(patsubst %.c,$(BUILD)/%,$(wildcard tests/mpi/*.c tests/e2e/*.c))
BENCHES  := $(patsubst %.c,$(BUILD)/%,$(wildcard tests/bench/*.c))
TEST_OBJECTS := $(UNIT:=.o) $(HELPERS:=.o) $(BENCHES:=.o)

# Fuzzers: clang with its sanitizers, in a folder of their own. FUZZ_SECONDS is for each; one more at a time than there are cores.
FUZZERS  := $(patsubst %.c,build-fuzz/%,$(wildcard tests/fuzz/fuzz_*.c))
FUZZ_SECONDS ?= 20

.PHONY: all deps run tests check check-mpi5 check-cuda soak check-gpu gpu-tests have-nvcc fuzz fuzzers check-style bench docs install uninstall clean
all: $(PROGRAM)

# `make -j2 deps run`: everything else waits for deps. With check among the goals it installs what tests need too.
DEPS     := $(filter deps,$(MAKECMDGOALS))
deps:
	@tests/tools/deps $(if $(filter check check-style,$(MAKECMDGOALS)),check)
$(OBJECTS) $(TEST_OBJECTS) check-style: | $(DEPS)

# Kernel files carry their instruction set in their name; nothing else is compiled for the build machine.
$(BUILD)/%_avx2.o:       STD += -mavx2 -mfma -mf16c
$(BUILD)/%_avx512.o:     STD += -mavx512f -mavx512bw -mavx512dq -mavx512vl -mfma
$(BUILD)/%_avx512bf16.o: STD += -mavx512f -mavx512bw -mavx512dq -mavx512vl -mavx512bf16 -mfma
$(BUILD)/src/wire/%.o $(BUILD)/src/slots/%.o $(BUILD)/tests/mpi/%.o $(BUILD)/tests/e2e/%.o \
$(BUILD)/tests/bench/%.o: CPPFLAGS += $(MPI_CFLAGS)

$(BUILD)/%.o: %.c
	$(call say,CC  $<)
	@mkdir -p $(@D)
	$(Q)$(CC) $(STD) $(CFLAGS) $(CPPFLAGS) -MMD -MP -c -o $@ $<

$(BUILD)/%.cu.o: %.cu
	$(call say,NVCC $<)
	@mkdir -p $(@D)
	$(Q)$(NVCC) $(NVCC_FLAGS) -MMD -MP -c -o $@ $<

# What CUDA was in the last build: another one makes another library.
.PHONY: always
$(BUILD)/cuda: always
	@mkdir -p $(@D)
	@echo '$(CUDA)' | cmp -s - $@ || echo '$(CUDA)' >$@

$(LIBRARY): $(BUILD)/cuda $(filter-out $(BUILD)/src/main.o,$(OBJECTS))
	@rm -f $@
	$(Q)ar rcs $@ $(filter %.o,$^)

$(PROGRAM): $(BUILD)/src/main.o $(LIBRARY)
	$(call say,LD  $@)
	$(Q)$(CC) $(STD) $(CFLAGS) $(LDFLAGS) -o $@ $^ $(LIBS)
	@[ $(@D) = . ] || ln -sfn $(CURDIR)/jobs $(@D)/jobs # the demo model is found beside the program

# For tests without a GPU: the kernels as C++, over an emulation of CUDA (tests/cudasim).
CXX       ?= g++
SIM       := $(patsubst %,$(BUILD)/sim/%.o,$(filter-out %/library.cu,$(KERNELS)) $(wildcard tests/cudasim/*.cc))
SIM_FLAGS  = -x c++ -std=c++17 $(filter-out -std=%,$(STD)) $(CFLAGS) -Wno-unknown-pragmas -fno-strict-aliasing \
             -Itests/cudasim/include $(CPPFLAGS)
SIM_UNIT  := $(filter %/test_cudasim $(BUILD)/tests/unit/test_cuda_%,$(UNIT))
$(BUILD)/sim/%.o: %
	$(call say,CXX $<)
	@mkdir -p $(@D)
	$(Q)$(CXX) $(SIM_FLAGS) -MMD -MP -c -o $@ $<
# The whole program on it, for tests/e2e/t_cuda*.py.
SIM_PROGRAM := $(BUILD)/sim/mpiserve
$(SIM_PROGRAM): $(BUILD)/src/main.o $(SIM) $(LIBRARY)
	$(call say,LD  $@)
	$(Q)$(CC) $(STD) $(CFLAGS) $(LDFLAGS) -o $@ $(filter %.o,$^) $(filter %.a,$^) $(LIBS) -lstdc++
	@ln -sfn $(CURDIR)/jobs $(@D)/jobs
$(SIM_UNIT): $(SIM)
$(SIM_UNIT): STDCXX := -lstdc++

# The text room once more, so that a test can count its steps.
COUNTED  := $(patsubst %.c,$(BUILD)/counted/%.o,$(wildcard src/text/*.c))
$(BUILD)/counted/%.o: %.c
	$(call say,CC  $< (counted))
	@mkdir -p $(@D)
	$(Q)$(CC) $(STD) -fsanitize-coverage=trace-pc $(CFLAGS) $(CPPFLAGS) -MMD -MP -c -o $@ $<
$(BUILD)/tests/unit/test_text_work: $(COUNTED)

$(UNIT): CMOCKA := -lcmocka
$(UNIT) $(HELPERS) $(BENCHES): %: %.o $(LIBRARY)
	$(call say,LD  $@)
	$(Q)$(CC) $(STD) $(CFLAGS) $(LDFLAGS) -o $@ $(filter %.o,$^) $(filter %.a,$^) $(CMOCKA) $(LIBS) $(STDCXX)

# exec: Ctrl-C reaches `mpiserve up` itself, which drains and then ends with 0.
RUN_ENV = $(if $(MPI_HOME),MPISERVE_MPIRUN=$(MPI_HOME)/bin/mpirun)
run: $(PROGRAM)
	@exec env $(RUN_ENV) ./$(PROGRAM) up $(ARGS)

tests: $(PROGRAM) $(SIM_PROGRAM) $(UNIT) $(HELPERS) $(BENCHES)
check: tests
	@env -u CUDA_VISIBLE_DEVICES BUILD=$(BUILD) PROGRAM=$(PROGRAM) SANITIZE=$(SANITIZE) $(RUN_ENV) tests/tools/run-tests $(TESTS)
# The same with Open MPI 5: MPI_HOME names it; without, PyPI's is installed into build/openmpi5.
MPI5       = $(abspath $(or $(MPI_HOME),build/openmpi5))
MPI5_TESTS = $(addprefix build-mpi5/tests/mpi/,wire slots wakes components) $(wildcard tests/e2e/t_*.py)
check-mpi5:
	@tests/tools/deps mpi5 $(MPI5)
	@$(MAKE) --no-print-directory MPI_HOME=$(MPI5) BUILD=build-mpi5 PROGRAM=build-mpi5/mpiserve \
	    check TESTS="$(or $(TESTS),$(MPI5_TESTS))"
# What takes minutes: failures of hosts, Slurm, the model of the slots beyond what is searched exhaustively, 10^8 operations on slots.
soak: tests
	@BUILD=$(BUILD) PROGRAM=$(PROGRAM) LAB_LONG=1 SOAK=1 TEST_TIMEOUT=1800 $(RUN_ENV) \
	    tests/tools/run-tests tests/lab/selftest tests/model/t_slots.py $(BUILD)/tests/mpi/slots
	@$(MAKE) --no-print-directory fuzz FUZZ_SECONDS=600
# What reads files once more, then the fuzzers with it: BUILD and CC differ, so make runs itself.
FUZZED   := $(wildcard src/base/*.c src/model/*.c src/text/*.c src/engine/*.c src/ops/*.c)
fuzz:
	@tests/tools/deps fuzz
	@$(MAKE) --no-print-directory CC=clang BUILD=build-fuzz SANITIZE=address,undefined,fuzzer-no-link SOURCES='$(FUZZED)' \
	    CFLAGS="-g -fno-sanitize-recover=undefined" fuzzers
	@prove --timer --comments -j "$$(($$(nproc) + 1))" --exec 'tests/fuzz/run $(FUZZ_SECONDS)' $(FUZZERS)
fuzzers: $(FUZZERS)
$(FUZZERS): build-fuzz/%: build-fuzz/%.o $(LIBRARY)
	$(call say,LD  $@)
	$(Q)$(CC) $(STD) $(CFLAGS) $(LDFLAGS) -fsanitize=fuzzer -o $@ $^ $(LIBS)

check-style:
	@tests/tools/check-style
# What nvcc makes of the kernels, without a GPU: registers and spills for each architecture.
check-cuda:
	@NVCC='$(NVCC)' ARCHS='$(CUDA_ARCHS)' tests/tools/cuda-report
# The same tests as over the emulation, on a GPU: built with CUDA in a folder of its own, so make runs itself.
GPU_UNIT  := $(patsubst %,$(BUILD)/tests/gpu/test_cuda_%,ops attn experts sample forward families engine vectors adapters)
GPU_BUILD := CUDA=1 BUILD=build-cuda PROGRAM=build-cuda/mpiserve
$(GPU_UNIT): $(BUILD)/tests/gpu/%: $(BUILD)/tests/unit/%.o $(BUILD)/tests/gpu/device.o $(LIBRARY)
	$(call say,LD  $@)
	$(Q)$(CC) $(STD) $(CFLAGS) $(LDFLAGS) -o $@ $(filter %.o,$^) $(filter %.a,$^) -lcmocka $(LIBS)
gpu-tests: $(PROGRAM) $(GPU_UNIT)
have-nvcc:
	@command -v '$(NVCC)' >/dev/null || { echo "there is no nvcc: CUDA_HOME=folder"; exit 1; }
check-gpu: have-nvcc
	@$(MAKE) --no-print-directory $(GPU_BUILD) gpu-tests
	@env $(filter-out CUDA=1,$(GPU_BUILD)) $(RUN_ENV) tests/tools/run-tests \
	    $(or $(TESTS),$(GPU_UNIT:$(BUILD)/%=build-cuda/%) tests/gpu/t_gpu.py)
bench: $(PROGRAM) $(BENCHES)
	@exec env BUILD=$(BUILD) $(RUN_ENV) python3 tests/bench/bench.py --program ./$(PROGRAM) $(ARGS)

docs: $(PROGRAM)
	@tests/tools/docs ./$(PROGRAM)

# The program finds its files by its own place: PREFIX/bin and PREFIX/share/mpiserve may be moved together.
PREFIX   ?= /usr/local
SHARE    := $(PREFIX)/share/mpiserve
SHARED   := README.md $(filter-out %/train,$(wildcard jobs/*.* jobs/demo-model/* slurm/*))
INSTALL  ?= install
install: $(PROGRAM)
	$(INSTALL) -D -m 755 $(PROGRAM) "$(DESTDIR)$(PREFIX)/bin/mpiserve"
	@set -e; for file in $(SHARED); do mode=644; [ ! -x $$file ] || mode=755; \
	    $(INSTALL) -D -m $$mode $$file "$(DESTDIR)$(SHARE)/$$file"; done
	@echo "  installed: $(DESTDIR)$(PREFIX)/bin/mpiserve, $(DESTDIR)$(SHARE)"

# Only what was installed goes; folders go when they are empty.
uninstall:
	@rm -f "$(DESTDIR)$(PREFIX)/bin/mpiserve" $(SHARED:%="$(DESTDIR)$(SHARE)/%")
	@for folder in /jobs/demo-model /jobs /slurm ""; do \
	    rmdir "$(DESTDIR)$(SHARE)$$folder" 2>/dev/null || true; done

clean:
	rm -rf build build-* mpiserve

-include $(OBJECTS:.o=.d) $(TEST_OBJECTS:.o=.d) $(FUZZERS:=.d) $(SIM:.o=.d) $(COUNTED:.o=.d)
