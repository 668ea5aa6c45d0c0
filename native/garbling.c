/* deepreduce.private.garbling._kernel: half gates for many instances of one circuit.
 *
 * Functions from buffers to buffers. Every size is checked here, against the buffers themselves, before memory is touched; the
 * program is copied and checked operation by operation, so that nothing another thread writes meanwhile can lead outside.
 * The GIL is released while the work runs; two calls share no memory but what the caller gives to both.
 */
#define PY_SSIZE_T_CLEAN
#define Py_LIMITED_API 0x030B0000
#include <Python.h>

#include <stdlib.h>

#include "garbling.h"

#define PASTE(a, b) a##b

/* What the processor has, asked once when the module is loaded: under a hypervisor the question costs microseconds. */
static int aes_here, vaes_here;

#if DR_BLOCKS
/* one block per vector */
DR_TARGET_AES DR_INLINE dr_block get_one(const uint8_t *p, size_t bytes) {
    uint64_t v = 0;
    if (bytes == 4) {
        memcpy(&v, p, 4);
    } else {
        memcpy(&v, p, 8);
    }
    return dr_halves(v, 0);
}
DR_TARGET_AES DR_INLINE void put_one(uint8_t *p, size_t bytes, dr_block v) {
    uint64_t low;
    memcpy(&low, &v, 8);
    if (bytes == 4) {
        memcpy(p, &low, 4);
    } else {
        memcpy(p, &low, 8);
    }
}
#define NAME(x) PASTE(aes_, x)
#define TARGET DR_TARGET_AES
#define V dr_block
#define VBLOCKS 1
#define VLOAD(p) dr_load(p)
#define VSTORE(p, v) dr_store(p, v)
#define VROWS(p, stride) VLOAD(p)
#define VXOR dr_xor
#define VAND dr_and
#define VZERO dr_zero
#define VADD dr_add
#define VSUB dr_subtract
#define VNUMBER(n) dr_halves(n, n)
#define VSIGMA dr_sigma
#define VLOWEST dr_lowest
#define VSPREAD(v) (v)
#define VGET get_one
#define VPUT put_one
#define VFIRST dr_first
#define VROUND dr_round
#define VLAST dr_last
#include "garbling_body.h"
#else
static int dr_has_aes(void) { return 0; }
#endif

#if DR_X86
#undef NAME
#undef TARGET
#undef V
#undef VBLOCKS
#undef VLOAD
#undef VSTORE
#undef VROWS
#undef VXOR
#undef VAND
#undef VZERO
#undef VADD
#undef VSUB
#undef VNUMBER
#undef VSIGMA
#undef VLOWEST
#undef VSPREAD
#undef VGET
#undef VPUT
#undef VFIRST
#undef VROUND
#undef VLAST

/* four blocks per vector */
#define DR_TARGET_VAES __attribute__((target("aes,ssse3,sse4.1,avx512f,vaes")))
DR_TARGET_VAES DR_INLINE __m512i sigma512(__m512i x) {
    return _mm512_xor_si512(_mm512_shuffle_epi32(x, (_MM_PERM_ENUM)0x4e), _mm512_maskz_mov_epi64(0xaa, x));
}
DR_TARGET_VAES DR_INLINE __m512i rows512(const uint8_t *p, size_t stride) {
    __m512i v = _mm512_castsi128_si512(_mm_loadu_si128((const __m128i *)(const void *)p));
    v = _mm512_inserti32x4(v, _mm_loadu_si128((const __m128i *)(const void *)(p + stride)), 1);
    v = _mm512_inserti32x4(v, _mm_loadu_si128((const __m128i *)(const void *)(p + 2 * stride)), 2);
    return _mm512_inserti32x4(v, _mm_loadu_si128((const __m128i *)(const void *)(p + 3 * stride)), 3);
}
DR_TARGET_VAES DR_INLINE __m512i get512(const uint8_t *p, size_t bytes) {
    if (bytes == 4) {
        return _mm512_maskz_expand_epi32(0x1111, _mm512_castsi128_si512(_mm_loadu_si128((const __m128i *)(const void *)p)));
    }
    return _mm512_maskz_expand_epi64(0x55, _mm512_castsi256_si512(_mm256_loadu_si256((const __m256i *)(const void *)p)));
}
DR_TARGET_VAES DR_INLINE void put512(uint8_t *p, size_t bytes, __m512i v) {
    if (bytes == 4) {
        _mm_storeu_si128((__m128i *)(void *)p, _mm512_castsi512_si128(_mm512_maskz_compress_epi32(0x1111, v)));
    } else {
        _mm256_storeu_si256((__m256i *)(void *)p, _mm512_castsi512_si256(_mm512_maskz_compress_epi64(0x55, v)));
    }
}
#define NAME(x) PASTE(vaes_, x)
#define TARGET DR_TARGET_VAES
#define V __m512i
#define VBLOCKS 4
#define VLOAD(p) _mm512_loadu_si512((const void *)(p))
#define VSTORE(p, v) _mm512_storeu_si512((void *)(p), v)
#define VROWS rows512
#define VXOR _mm512_xor_si512
#define VAND _mm512_and_si512
#define VZERO _mm512_setzero_si512
#define VADD _mm512_add_epi64
#define VSUB _mm512_sub_epi64
#define VNUMBER(n) _mm512_set1_epi64((long long)(n))
#define VSIGMA sigma512
#define VLOWEST(v) _mm512_shuffle_epi32(_mm512_srai_epi32(_mm512_slli_epi32(v, 31), 31), (_MM_PERM_ENUM)0)
#define VSPREAD(v) _mm512_broadcast_i32x4(v)
#define VGET get512
#define VPUT put512
#define VFIRST _mm512_xor_si512
#define VROUND _mm512_aesenc_epi128
#define VLAST(x, key9, key10) _mm512_aesenclast_epi128(x, key10)
#include "garbling_body.h"

static int ask_vaes(void) {
    unsigned a, b, c, d;
    if (!dr_has_aes() || !__builtin_cpu_supports("avx512f") || !__get_cpuid_count(7, 0, &a, &b, &c, &d)) {
        return 0;
    }
    return (int)((c >> 9) & 1);
}
#else
static int ask_vaes(void) { return 0; }
#endif

/* Overwrite secrets; the compiler may not drop the call. */
static void *(*const volatile wipe)(void *, int, size_t) = memset;

#define MAX_OPS ((size_t)1 << 24)
#define MAX_SLOTS ((size_t)1 << 20)
#define MAX_WIRES ((size_t)1 << 24)
#define MAX_WORDS ((size_t)1 << 16)

static int refuse(const char *what) {
    PyErr_SetString(PyExc_ValueError, what);
    return -1;
}

static int need_aes(void) {
    if (!aes_here) {
        PyErr_SetString(PyExc_RuntimeError, "this processor has no AES instructions");
        return -1;
    }
    return 0;
}

/* Does the buffer hold exactly count * size bytes? */
static int holds(const Py_buffer *buffer, size_t count, size_t size) {
    size_t bytes;
    return !__builtin_mul_overflow(count, size, &bytes) && (size_t)buffer->len == bytes;
}

static void free_program(dr_program *p) {
    free(p->ops);
    free(p->weights);
    free(p->constants);
    free(p->word_bits);
}

/* Every operand of every operation within its bounds; counts keys and bytes of tables. */
static int check_ops(dr_program *p) {
    for (size_t n = 0; n < p->n_ops; n++) {
        const dr_op op = p->ops[n];
        const int kind = op.code & 0xff;
        if ((op.code & ~(0xff | DR_INVERT_A | DR_INVERT_B)) != 0 || kind >= DR_OPS || op.a < 0 || op.b < 0 || op.d < 0 ||
            op.a2 < 0 || op.b2 < 0 || op.c < 0) {
            return refuse("an operation is unknown");
        }
        const int gate = kind == DR_OP_XOR || kind == DR_OP_AND || kind == DR_OP_AND_KNOWN;
        const int load = kind == DR_OP_LOAD_GARBLER || kind == DR_OP_LOAD_EVALUATOR;
        const size_t wires = kind == DR_OP_LOAD_GARBLER ? p->garbler_wires : p->evaluator_wires;
        const size_t behind = kind == DR_OP_FACTOR ? 1 : 0; /* a factor's word */
        const size_t targets = gate || load ? p->slots : dr_is_word(kind) ? p->words : p->outputs;
        /* Slot 0 is zero for ever: nothing may write to it. */
        if ((size_t)op.a >= (load ? wires : p->slots) || (size_t)op.b >= p->slots || (size_t)op.a2 >= p->slots ||
            (size_t)op.b2 >= p->slots || (size_t)op.c >= p->slots || (size_t)op.d + behind >= targets ||
            ((gate || load) && op.d == 0)) {
            return refuse("an operand of an operation is out of range");
        }
        p->hashes += dr_hashes(kind);
        p->table_bytes += dr_entries(kind) * dr_entry_bytes(p, &op);
    }
    return 0;
}

static void *copied(const Py_buffer *buffer) {
    void *p = malloc(buffer->len ? (size_t)buffer->len : 1);
    if (p == NULL) {
        PyErr_NoMemory();
    } else if (buffer->len) {
        memcpy(p, buffer->buf, (size_t)buffer->len);
    }
    return p;
}

static int load_program(dr_program *p, const Py_buffer *ops, const Py_buffer *weights, const Py_buffer *constants,
                        const Py_buffer *word_bits, const Py_ssize_t sizes[4]) {
    memset(p, 0, sizeof *p);
    p->n_ops = (size_t)ops->len / sizeof(dr_op);
    p->words = (size_t)word_bits->len;
    if (!holds(ops, p->n_ops, sizeof(dr_op)) || p->n_ops > MAX_OPS || p->words > MAX_WORDS || !holds(weights, p->n_ops, 8) ||
        !holds(constants, p->words, 8)) {
        return refuse("operations, weights, constants and word sizes do not fit each other");
    }
    if (sizes[0] < 1 || (size_t)sizes[0] > MAX_SLOTS || sizes[1] < 0 || (size_t)sizes[1] > MAX_WIRES || sizes[2] < 0 ||
        (size_t)sizes[2] > MAX_WIRES || sizes[3] < 0 || (size_t)sizes[3] > MAX_WIRES) {
        return refuse("slots, wires or outputs are out of range");
    }
    p->slots = (size_t)sizes[0];
    p->garbler_wires = (size_t)sizes[1];
    p->evaluator_wires = (size_t)sizes[2];
    p->outputs = (size_t)sizes[3];
    if ((p->ops = copied(ops)) == NULL || (p->weights = copied(weights)) == NULL ||
        (p->constants = copied(constants)) == NULL || (p->word_bits = copied(word_bits)) == NULL) {
        return -1;
    }
    for (size_t w = 0; w < p->words; w++) {
        if (p->word_bits[w] < 1 || p->word_bits[w] > 64) {
            return refuse("a word has 1 to 64 bits");
        }
    }
    return check_ops(p);
}

#if DR_BLOCKS
static int work(const dr_job *job, int level) {
    const dr_program *p = job->program;
    const size_t slots = p->slots * DR_SLOT_BYTES, keys = p->hashes * sizeof(dr_aes_key);
    const size_t sums = p->words * DR_SLOT_BYTES;
    const size_t padded = (slots + keys + sums + 63) & ~(size_t)63; /* slots is a multiple of 64, keys of 16 */
    uint8_t *memory = aligned_alloc(64, padded);
    if (memory == NULL) {
        return -1;
    }
    memset(memory, 0, padded);
    const dr_scratch scratch = {memory, memory + slots, memory + slots + keys};
#if DR_X86
    if (level == 2) {
        vaes_run(job, &scratch);
    } else {
        aes_run(job, &scratch);
    }
#else
    (void)level;
    aes_run(job, &scratch);
#endif
    wipe(memory, 0, padded);
    free(memory);
    return 0;
}
#else
static int work(const dr_job *job, int level) {
    (void)job;
    (void)level;
    return -1;
}
#endif

enum { OPS, WEIGHTS, CONSTANTS, WORD_BITS, KEY, DELTA, GARBLER, EVALUATOR, TABLES, COLOURS, WORDS, BUFFERS };

static PyObject *run_job(PyObject *args, int garbling) {
    Py_buffer buffer[BUFFERS];
    Py_ssize_t sizes[4], instances;
    unsigned long first_block;
    int level, failed = -1;
    dr_program program;
    dr_job job;

    memset(buffer, 0, sizeof buffer);
    memset(&program, 0, sizeof program);
    memset(&job, 0, sizeof job);
    if (garbling) {
        if (!PyArg_ParseTuple(args, "y*y*y*y*(nnnn)nky*iy*y*y*w*w*w*", &buffer[OPS], &buffer[WEIGHTS], &buffer[CONSTANTS],
                              &buffer[WORD_BITS], &sizes[0], &sizes[1], &sizes[2], &sizes[3], &instances, &first_block,
                              &buffer[KEY], &level, &buffer[DELTA], &buffer[GARBLER], &buffer[EVALUATOR], &buffer[TABLES],
                              &buffer[COLOURS], &buffer[WORDS])) {
            return NULL;
        }
    } else {
        if (!PyArg_ParseTuple(args, "y*y*y*y*(nnnn)nky*iy*y*y*w*w*", &buffer[OPS], &buffer[WEIGHTS], &buffer[CONSTANTS],
                              &buffer[WORD_BITS], &sizes[0], &sizes[1], &sizes[2], &sizes[3], &instances, &first_block,
                              &buffer[KEY], &level, &buffer[GARBLER], &buffer[EVALUATOR], &buffer[TABLES], &buffer[COLOURS],
                              &buffer[WORDS])) {
            return NULL;
        }
    }
    if (need_aes() < 0 ||
        load_program(&program, &buffer[OPS], &buffer[WEIGHTS], &buffer[CONSTANTS], &buffer[WORD_BITS], sizes) < 0) {
        goto done;
    }
    const size_t n = (size_t)instances;
    if (instances < 1 || first_block > UINT32_MAX || (n - 1) / DR_BLOCK > UINT32_MAX - first_block) {
        refuse("instances are out of range");
        goto done;
    }
    if (buffer[KEY].len != 16 || (garbling && buffer[DELTA].len != 16)) {
        refuse("keys and offsets have 16 bytes");
        goto done;
    }
    if (!holds(&buffer[GARBLER], n, 16 * program.garbler_wires) || !holds(&buffer[EVALUATOR], n, 16 * program.evaluator_wires) ||
        !holds(&buffer[TABLES], n, program.table_bytes) || !holds(&buffer[COLOURS], n, program.outputs) ||
        !holds(&buffer[WORDS], n, 8 * program.words)) {
        refuse("labels, tables or outputs do not have the size that the program asks for");
        goto done;
    }
    if (level < 0 || level > 2 || (level == 2 && !vaes_here)) {
        refuse("the level is 0 (best), 1 (one block per instruction) or 2 (VAES, where the processor has it)");
        goto done;
    }
    job.program = &program;
    job.garbling = garbling;
    job.instances = n;
    job.first_block = (uint32_t)first_block;
    memcpy(job.key_base, buffer[KEY].buf, 16);
    if (garbling) {
        memcpy(job.delta, buffer[DELTA].buf, 16);
        job.tables_out = buffer[TABLES].buf;
    } else {
        job.tables_in = buffer[TABLES].buf;
    }
    job.garbler_labels = buffer[GARBLER].buf;
    job.evaluator_labels = buffer[EVALUATOR].buf;
    job.colours = buffer[COLOURS].buf;
    job.words = buffer[WORDS].buf;
    if (level == 0) {
        level = vaes_here ? 2 : 1;
    }
    Py_BEGIN_ALLOW_THREADS
    failed = work(&job, level);
    wipe(&job, 0, sizeof job);
    Py_END_ALLOW_THREADS
    if (failed) {
        PyErr_NoMemory();
    }
done:
    free_program(&program);
    for (int i = 0; i < BUFFERS; i++) {
        if (buffer[i].obj != NULL) {
            PyBuffer_Release(&buffer[i]);
        }
    }
    if (failed) {
        return NULL;
    }
    Py_RETURN_NONE;
}

static PyObject *py_garble(PyObject *self, PyObject *args) {
    (void)self;
    return run_job(args, 1);
}

static PyObject *py_evaluate(PyObject *self, PyObject *args) {
    (void)self;
    return run_job(args, 0);
}

static PyObject *py_features(PyObject *self, PyObject *unused) {
    (void)self;
    (void)unused;
    return Py_BuildValue("{s:O,s:O}", "aes", aes_here ? Py_True : Py_False, "vaes", vaes_here ? Py_True : Py_False);
}

static PyObject *py_encrypt(PyObject *self, PyObject *args) {
    Py_buffer key, in, out;
    int failed = -1;
    (void)self;
    if (!PyArg_ParseTuple(args, "y*y*w*", &key, &in, &out)) {
        return NULL;
    }
    if (need_aes() == 0) {
        if (key.len != 16 || in.len % 16 != 0 || in.len != out.len) {
            refuse("a key has 16 bytes; input and output have the same whole number of blocks of 16 bytes");
        } else {
#if DR_BLOCKS
            dr_aes_key expanded;
            Py_BEGIN_ALLOW_THREADS
            dr_aes_expand(key.buf, &expanded);
            dr_aes_ecb(&expanded, in.buf, out.buf, (size_t)in.len / 16);
            wipe(&expanded, 0, sizeof expanded);
            Py_END_ALLOW_THREADS
            failed = 0;
#endif
        }
    }
    PyBuffer_Release(&key);
    PyBuffer_Release(&in);
    PyBuffer_Release(&out);
    if (failed) {
        return NULL;
    }
    Py_RETURN_NONE;
}

static PyObject *py_keystream(PyObject *self, PyObject *args) {
    Py_buffer key, out;
    unsigned long long counter;
    int failed = -1;
    (void)self;
    if (!PyArg_ParseTuple(args, "y*Kw*", &key, &counter, &out)) {
        return NULL;
    }
    if (need_aes() == 0) {
        if (key.len != 16 || out.len % 16 != 0 || (uint64_t)out.len / 16 > UINT64_MAX - counter) {
            refuse("a key has 16 bytes, a key stream whole blocks of 16 bytes, and its counter stays below 2^64");
        } else {
#if DR_BLOCKS
            dr_aes_key expanded;
            Py_BEGIN_ALLOW_THREADS
            dr_aes_expand(key.buf, &expanded);
            dr_aes_ctr(&expanded, counter, out.buf, (size_t)out.len / 16);
            wipe(&expanded, 0, sizeof expanded);
            Py_END_ALLOW_THREADS
            failed = 0;
#endif
        }
    }
    PyBuffer_Release(&key);
    PyBuffer_Release(&out);
    if (failed) {
        return NULL;
    }
    Py_RETURN_NONE;
}

#if DR_BLOCKS
/* labels[i] ^= delta where bit i of the numbers is 1: `bits` labels per number, in place, without a branch on the bit. */
DR_TARGET_AES static void offset_labels(uint8_t *labels, const uint8_t *numbers, size_t count, unsigned bits,
                                        const uint8_t delta[16]) {
    const dr_block offset = dr_load(delta);
    for (size_t i = 0; i < count; i++) {
        uint64_t x;
        memcpy(&x, numbers + 8 * i, 8);
        for (unsigned j = 0; j < bits; j++) {
            uint8_t *p = labels + 16 * (i * bits + j);
            const uint64_t mask = 0 - ((x >> j) & 1);
            dr_store(p, dr_xor(dr_load(p), dr_and(dr_halves(mask, mask), offset)));
        }
    }
}
#endif

static PyObject *py_offset_labels(PyObject *self, PyObject *args) {
    Py_buffer labels, numbers, delta;
    int bits, failed = -1;
    (void)self;
    if (!PyArg_ParseTuple(args, "w*y*iy*", &labels, &numbers, &bits, &delta)) {
        return NULL;
    }
    if (need_aes() == 0) {
        if (bits < 1 || bits > 64 || delta.len != 16 || numbers.len % 8 != 0 ||
            !holds(&labels, (size_t)numbers.len / 8, 16 * (size_t)bits)) {
            refuse("there are 1 to 64 labels of 16 bytes per 64-bit number, and an offset of 16 bytes");
        } else {
#if DR_BLOCKS
            Py_BEGIN_ALLOW_THREADS
            offset_labels(labels.buf, numbers.buf, (size_t)numbers.len / 8, (unsigned)bits, delta.buf);
            Py_END_ALLOW_THREADS
            failed = 0;
#endif
        }
    }
    PyBuffer_Release(&labels);
    PyBuffer_Release(&numbers);
    PyBuffer_Release(&delta);
    if (failed) {
        return NULL;
    }
    Py_RETURN_NONE;
}

static PyMethodDef methods[] = {
    {"features", py_features, METH_NOARGS, "features() -> {'aes': bool, 'vaes': bool}: what this processor has."},
    {"encrypt", py_encrypt, METH_VARARGS, "encrypt(key, data, out): AES-128 in ECB mode, for tests."},
    {"keystream", py_keystream, METH_VARARGS, "keystream(key, counter, out): AES-128 of counter, counter + 1, ..."},
    {"offset_labels", py_offset_labels, METH_VARARGS,
     "offset_labels(labels, numbers, bits, delta): add delta to the labels whose bit is 1, in place."},
    {"garble", py_garble, METH_VARARGS,
     "garble(ops, weights, constants, word_bits, (slots, garbler_wires, evaluator_wires, outputs), instances, first_block,\n"
     "       key, level, delta, garbler_zero, evaluator_zero, tables, decoding, offsets)"},
    {"evaluate", py_evaluate, METH_VARARGS,
     "evaluate(ops, weights, constants, word_bits, (slots, garbler_wires, evaluator_wires, outputs), instances, first_block,\n"
     "         key, level, garbler_labels, evaluator_labels, tables, colours, words)"},
    {NULL, NULL, 0, NULL},
};

static int ask_processor(PyObject *unused) {
    (void)unused;
    aes_here = dr_has_aes();
    vaes_here = ask_vaes();
    return 0;
}

/* The slot's type is void *, as CPython defines it; ISO C has no such conversion, POSIX has. */
static PyModuleDef_Slot slots[] = {{Py_mod_exec, (void *)(uintptr_t)ask_processor}, {0, NULL}};

static struct PyModuleDef module = {
    PyModuleDef_HEAD_INIT, "deepreduce.private.garbling._kernel", "Half gates for many instances of one circuit.",
    0, methods, slots, NULL, NULL, NULL,
};

PyMODINIT_FUNC PyInit__kernel(void) { return PyModuleDef_Init(&module); }
