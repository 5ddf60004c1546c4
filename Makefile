# mpiserve: make, make deps, make run, make check, make check-style, make bench, make clean
# Options: CC=clang  BUILD=folder  SANITIZE=address,undefined  WERROR=

CC       ?= gcc
BUILD    ?= build$(if $(SANITIZE),-san)
WERROR   ?= -Werror
OPT      ?= -O2
PROGRAM  := $(if $(SANITIZE),$(BUILD)/mpiserve,mpiserve)
CFLAGS   ?= -g
CPPFLAGS += -D_GNU_SOURCE -Iinclude -Isrc
STD      := -std=gnu11 -pthread -Wall -Wextra $(WERROR) $(OPT) -fno-math-errno -ffp-contract=off \
            $(if $(SANITIZE),-fsanitize=$(SANITIZE) -fno-omit-frame-pointer)
MPICC    ?= $(if $(MPI_HOME),$(MPI_HOME)/bin/mpicc,mpicc)
# recursive on purpose: asked when a recipe needs them, after `deps` has installed what they name
MPI_CFLAGS = $(shell $(MPICC) --showme:compile)
MPI_LIBS   = $(shell $(MPICC) --showme:link)
LIBS       = $(MPI_LIBS) -lmicrohttpd -lhwloc -ljansson -lpcre2-8 -lutf8proc -lm -pthread

SOURCES := $(wildcard src/*.c src/*/*.c src/*/*/*.c)
OBJECTS := $(SOURCES:%.c=$(BUILD)/%.o)
LIBRARY := $(BUILD)/libmpiserve.a
BENCHES := $(patsubst %.c,$(BUILD)/%,$(wildcard tests/bench/bench_*.c))
TESTS   := $(patsubst %.c,$(BUILD)/%,$(wildcard tests/unit/test_*.c))

.PHONY: all tests bench check clean
all: $(PROGRAM)

# Kernel files carry their instruction set in their name; nothing else is compiled for the build machine.
$(BUILD)/%_avx2.o:       STD += -mavx2 -mfma -mf16c
$(BUILD)/%_avx512.o:     STD += -mavx512f -mavx512bw -mavx512dq -mavx512vl -mfma
$(BUILD)/%_avx512bf16.o: STD += -mavx512f -mavx512bw -mavx512dq -mavx512vl -mavx512bf16 -mfma
$(BUILD)/src/wire/%.o $(BUILD)/src/slots/%.o $(BUILD)/tests/unit/%_mpi.o: CPPFLAGS += $(MPI_CFLAGS)

$(BUILD)/%.o: %.c
	@mkdir -p $(@D)
	$(CC) $(STD) $(CFLAGS) $(CPPFLAGS) -MMD -MP -c -o $@ $<

$(LIBRARY): $(filter-out $(BUILD)/src/main.o,$(OBJECTS))
	@rm -f $@
	ar rcs $@ $^

$(PROGRAM): $(BUILD)/src/main.o $(LIBRARY)
	$(CC) $(STD) $(CFLAGS) $(LDFLAGS) -o $@ $^ $(LIBS)

$(BUILD)/tests/unit/%: $(BUILD)/tests/unit/%.o $(LIBRARY)
	$(CC) $(STD) $(CFLAGS) $(LDFLAGS) -o $@ $^ -lcmocka $(LIBS)

$(BUILD)/tests/bench/%: $(BUILD)/tests/bench/%.o $(LIBRARY)
	$(CC) $(STD) $(CFLAGS) $(LDFLAGS) -o $@ $^ $(LIBS)

tests: $(TESTS)

bench: $(BENCHES)
	@for b in $^; do $$b || exit 1; done

clean:
	rm -rf build build-* mpiserve

-include $(OBJECTS:.o=.d) $(TESTS:=.d) $(BENCHES:=.d)
