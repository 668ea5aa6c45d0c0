/* Correlated oblivious transfers from seeds: the arithmetic of src/deepreduce/private/transfer/extension.py.
 *
 * SoftSpokenOT (Roy, CRYPTO 2022, ePrint 2022/192, section 3.1 and figure 7) over F_{2^k}, k in {1, 2, 4, 8}; k = 1 is
 * IKNP. T = 128/k trees of 2^k leaves; a leaf is an AES-128 key whose counter-mode stream gives one bit per transfer.
 * Per tree, with r_x the stream of leaf x:
 *
 *     u = sum of r_x over all x,        v_j = sum of r_x over all x whose bit j is set    (sums are exclusive or)
 *
 *     receiver   corrections = u xor choices;  bit k i + j of a label is v_j of tree i
 *     sender     leaves renumbered y = x xor Delta_i, r_0 unknown and not needed:
 *                bit k i + j of a label is v_j of tree i, xor corrections where bit k i + j of Delta is set
 *
 * Work goes in chunks of eight blocks of 128 transfers: eight AES blocks in flight per leaf, a tree's streams stay in
 * the first-level cache, and the 128 rows of a chunk are transposed there into labels.
 *
 * Nothing branches on or indexes by a secret: every loop runs over public sizes, Delta acts through masks. Lengths are
 * checked against each other before a byte is touched; the GIL is released; key schedules and streams are wiped.
 */
#define PY_SSIZE_T_CLEAN
#define Py_LIMITED_API 0x030B0000
#include <Python.h>

#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "aes128.h"

#define LABEL_BITS 128
#define BLOCK_BYTES 16                          /* 128 choice bits, or one AES block, or one label */
#define LABELS_BYTES (LABEL_BITS * BLOCK_BYTES) /* the labels of one block of 128 transfers */

#if DR_BLOCKS
#define LANES 8 /* blocks of 128 transfers per chunk */

/* Everything secret that the kernel keeps between two instructions, in one piece, so that it can be wiped. */
typedef struct {
    dr_block rows[LABEL_BITS][LANES]; /* bit m of rows[j][l] is bit j of label 128 l + m */
    dr_block mask[LABEL_BITS];        /* all ones where Delta has a one; sender only */
    dr_block tile[LABEL_BITS * 2];    /* half-way through a transposition */
    dr_block *stream;                 /* [leaf][lane] of the tree at hand */
    dr_aes_key *schedule;             /* [tree][leaf] */
    size_t bytes;                     /* of the whole allocation */
} workspace;

/* What both parties' calls have in common; lengths in units of the type pointed to. */
typedef struct {
    size_t field_bits, trees, leaves, blocks;
    uint64_t start;
    const uint8_t *nonces;
} extension;

static void wipe(void *memory, size_t bytes) {
    memset(memory, 0, bytes);
    __asm__ __volatile__("" : : "r"(memory) : "memory"); /* so that the compiler keeps the memset */
}

static size_t round_up(size_t bytes) { return (bytes + 63) & ~(size_t)63; }

/* Allocate the workspace and expand all keys; NULL when memory is short. */
DR_TARGET_AES static workspace *prepare(const extension *e, const uint8_t *keys) {
    size_t head = round_up(sizeof(workspace));
    size_t streams = round_up(e->leaves * LANES * BLOCK_BYTES);
    size_t bytes = head + streams + round_up(e->trees * e->leaves * sizeof(dr_aes_key)); /* at most 0.8 MB, by the bounds on k */
    uint8_t *memory = aligned_alloc(64, bytes);
    if (!memory) {
        return NULL;
    }
    workspace *w = (workspace *)(void *)memory;
    w->stream = (dr_block *)(void *)(memory + head);
    w->schedule = (dr_aes_key *)(void *)(memory + head + streams);
    w->bytes = bytes;
    for (size_t i = 0; i < e->trees * e->leaves; i++) {
        dr_aes_expand(keys + BLOCK_BYTES * i, &w->schedule[i]);
    }
    return w;
}

static void discard(workspace *w) {
    wipe(w, w->bytes);
    free(w);
}

/* Counter blocks of SP 800-38A: eight bytes of nonce, then the position as a big-endian number. */
DR_TARGET_AES static inline void counters(const uint8_t nonce[8], uint64_t position, dr_block out[LANES]) {
    uint64_t low;
    memcpy(&low, nonce, sizeof low);
    for (uint64_t l = 0; l < LANES; l++) {
        out[l] = dr_halves(low, __builtin_bswap64(position + l));
    }
}

/* Fill stream[leaf][lane] for leaves first ... 2^k - 1 of one tree; leaf 0 becomes zero where first is 1. */
DR_TARGET_AES static void generate(const extension *e, workspace *w, size_t tree, size_t first, uint64_t position) {
    dr_block counter[LANES];
    counters(e->nonces + 8 * tree, position, counter);
    if (first) {
        memset(w->stream, 0, LANES * BLOCK_BYTES);
    }
    for (size_t leaf = first; leaf < e->leaves; leaf++) {
        dr_block block[LANES];
        memcpy(block, counter, sizeof block);
        dr_aes_encrypt8(&w->schedule[tree * e->leaves + leaf], block);
        memcpy(w->stream + leaf * LANES, block, sizeof block);
    }
}

/* Halve the leaves k times: of each neighbouring pair the odd one goes into v_j, the sum becomes a leaf of the next
 * round, the last one left is u. 2 (2^k - 1) additions instead of k 2^(k-1). v_j ends in rows[j], u in stream[0]. */
DR_TARGET_AES static void fold(size_t field_bits, dr_block *stream, dr_block (*rows)[LANES]) {
    size_t half = (size_t)1 << field_bits;
    for (size_t j = 0; j < field_bits; j++) {
        dr_block sum[LANES];
        memset(sum, 0, sizeof sum);
        half >>= 1;
        for (size_t pair = 0; pair < half; pair++) {
            const dr_block *even = stream + 2 * pair * LANES, *odd = even + LANES;
            dr_block *out = stream + pair * LANES;
            for (size_t l = 0; l < LANES; l++) {
                dr_block right = odd[l];
                out[l] = dr_xor(even[l], right);
                sum[l] = dr_xor(sum[l], right);
            }
        }
        memcpy(rows[j], sum, sizeof sum);
    }
}

/* Transposing 128 by 128 bits in two sweeps, for vectors of one block or of two blocks side by side (AVX2).
 *
 * First sweep: 8 by 8 bits across the registers of eight neighbouring rows: swap bits, pairs, fours over the diagonal.
 * Then byte c of register b of group g holds bits 8 g ... 8 g + 7 of label 8 c + b.
 * Second sweep: for each b the 16 by 16 bytes indexed (g, c), by four rounds of interleaving. */
#define SWAP(a, b, shift, keep, XOR, AND, SRL, SLL) \
    do {                                            \
        t = AND(XOR(SRL(a, shift), b), keep);       \
        b = XOR(b, t);                              \
        a = XOR(a, SLL(t, shift));                  \
    } while (0)

#define DEFINE_TRANSPOSE(NAME, TARGET, V, LOAD, SET1, XOR, AND, SRL, SLL, UNPACK_LOW, UNPACK_HIGH, EMIT)             \
    TARGET static void NAME(const dr_block (*rows)[LANES], size_t lane, V *tile, uint8_t *out) {                      \
        const V ones = SET1(0x55), twos = SET1(0x33), fours = SET1(0x0f);                                            \
        for (size_t g = 0; g < 16; g++) {                                                                            \
            V r[8], t;                                                                                               \
            for (size_t b = 0; b < 8; b++) {                                                                         \
                r[b] = LOAD((const V *)(const void *)&rows[8 * g + b][lane]);                                        \
            }                                                                                                        \
            for (size_t b = 0; b < 8; b += 2) {                                                                      \
                SWAP(r[b], r[b + 1], 1, ones, XOR, AND, SRL, SLL);                                                   \
            }                                                                                                        \
            for (size_t b = 0; b < 8; b += (b & 1) ? 3 : 1) {                                                        \
                SWAP(r[b], r[b + 2], 2, twos, XOR, AND, SRL, SLL);                                                   \
            }                                                                                                        \
            for (size_t b = 0; b < 4; b++) {                                                                         \
                SWAP(r[b], r[b + 4], 4, fours, XOR, AND, SRL, SLL);                                                  \
            }                                                                                                        \
            for (size_t b = 0; b < 8; b++) {                                                                         \
                tile[16 * b + g] = r[b];                                                                             \
            }                                                                                                        \
        }                                                                                                            \
        for (size_t b = 0; b < 8; b++) {                                                                             \
            V p[16], q[16];                                                                                          \
            memcpy(p, tile + 16 * b, sizeof p);                                                                      \
            for (int round = 0; round < 4; round++) {                                                                \
                for (size_t g = 0; g < 8; g++) {                                                                     \
                    q[2 * g] = UNPACK_LOW(p[g], p[g + 8]);                                                           \
                    q[2 * g + 1] = UNPACK_HIGH(p[g], p[g + 8]);                                                      \
                }                                                                                                    \
                memcpy(p, q, sizeof p);                                                                              \
            }                                                                                                        \
            for (size_t c = 0; c < 16; c++) {                                                                        \
                EMIT(out + BLOCK_BYTES * (8 * c + b), p[c]);                                                         \
            }                                                                                                        \
        }                                                                                                            \
    }

#define BYTES(n) dr_halves(0x0101010101010101 * UINT64_C(n), 0x0101010101010101 * UINT64_C(n))
DEFINE_TRANSPOSE(transpose_one, DR_TARGET_AES, dr_block, dr_load, BYTES, dr_xor, dr_and, dr_down, dr_up,
                 dr_interleave_low, dr_interleave_high, dr_store)

#if DR_X86
#define TARGET_AVX2 __attribute__((target("avx2,aes")))
#define EMIT_TWO(to, v)                                                \
    do {                                                               \
        dr_store(to, _mm256_castsi256_si128(v));                       \
        dr_store((to) + LABELS_BYTES, _mm256_extracti128_si256(v, 1)); \
    } while (0)
DEFINE_TRANSPOSE(transpose_two, TARGET_AVX2, __m256i, _mm256_load_si256, _mm256_set1_epi8, _mm256_xor_si256,
                 _mm256_and_si256, _mm256_srli_epi64, _mm256_slli_epi64, _mm256_unpacklo_epi8, _mm256_unpackhi_epi8,
                 EMIT_TWO)
#endif

/* Transpose the first `lanes` lanes of the rows into labels. */
DR_TARGET_AES static void emit(workspace *w, size_t lanes, uint8_t *labels) {
    const dr_block(*rows)[LANES] = (const dr_block(*)[LANES])w->rows;
    size_t lane = 0;
#if DR_X86
    if (__builtin_cpu_supports("avx2")) {
        for (; lane + 2 <= lanes; lane += 2) {
            transpose_two(rows, lane, (__m256i *)(void *)w->tile, labels + LABELS_BYTES * lane);
        }
    }
#endif
    for (; lane < lanes; lane++) {
        transpose_one(rows, lane, w->tile, labels + LABELS_BYTES * lane);
    }
}

static size_t lanes_at(const extension *e, size_t block) {
    return e->blocks - block < LANES ? e->blocks - block : LANES;
}

DR_TARGET_AES static void run_receiver(const extension *e, workspace *w, const uint8_t *choices, uint8_t *corrections,
                                       uint8_t *labels) {
    for (size_t block = 0; block < e->blocks; block += LANES) {
        size_t lanes = lanes_at(e, block);
        for (size_t tree = 0; tree < e->trees; tree++) {
            generate(e, w, tree, 0, e->start + block);
            fold(e->field_bits, w->stream, w->rows + tree * e->field_bits);
            for (size_t l = 0; l < lanes; l++) {
                const uint8_t *from = choices + BLOCK_BYTES * (block + l);
                dr_block choice = dr_load(from);
                uint8_t *to = corrections + BLOCK_BYTES * ((block + l) * e->trees + tree);
                dr_store(to, dr_xor(w->stream[l], choice));
            }
        }
        emit(w, lanes, labels + LABELS_BYTES * block);
    }
}

DR_TARGET_AES static void run_sender(const extension *e, workspace *w, const uint8_t *delta, const uint8_t *corrections,
                                     uint8_t *labels) {
    for (size_t bit = 0; bit < LABEL_BITS; bit++) {
        const uint64_t chosen = 0 - (uint64_t)((delta[bit / 8] >> (bit % 8)) & 1);
        w->mask[bit] = dr_halves(chosen, chosen);
    }
    for (size_t block = 0; block < e->blocks; block += LANES) {
        size_t lanes = lanes_at(e, block);
        for (size_t tree = 0; tree < e->trees; tree++) {
            dr_block(*rows)[LANES] = w->rows + tree * e->field_bits;
            const dr_block *mask = w->mask + tree * e->field_bits;
            generate(e, w, tree, 1, e->start + block);
            fold(e->field_bits, w->stream, rows);
            for (size_t l = 0; l < lanes; l++) {
                const uint8_t *from = corrections + BLOCK_BYTES * ((block + l) * e->trees + tree);
                dr_block correction = dr_load(from);
                for (size_t j = 0; j < e->field_bits; j++) {
                    rows[j][l] = dr_xor(rows[j][l], dr_and(mask[j], correction));
                }
            }
        }
        emit(w, lanes, labels + LABELS_BYTES * block);
    }
}

DR_TARGET_AES static void run_expand(const uint8_t *keys, const uint8_t *nonces, size_t rows, uint64_t start,
                                     size_t blocks, uint8_t *out) {
    dr_aes_key schedule;
    dr_block block[LANES];
    for (size_t row = 0; row < rows; row++) {
        dr_aes_expand(keys + BLOCK_BYTES * row, &schedule);
        for (size_t b = 0; b < blocks; b += LANES) {
            size_t lanes = blocks - b < LANES ? blocks - b : LANES;
            counters(nonces + 8 * row, start + b, block);
            dr_aes_encrypt8(&schedule, block);
            memcpy(out + BLOCK_BYTES * (row * blocks + b), block, BLOCK_BYTES * lanes);
        }
    }
    wipe(&schedule, sizeof schedule);
    wipe(block, sizeof block);
}

static int run_transpose(const uint8_t *rows, size_t blocks, uint8_t *out) {
    workspace *w = aligned_alloc(64, round_up(sizeof(workspace)));
    if (!w) {
        return 0;
    }
    w->bytes = sizeof(workspace);
    for (size_t block = 0; block < blocks; block += LANES) {
        size_t lanes = blocks - block < LANES ? blocks - block : LANES;
        for (size_t row = 0; row < LABEL_BITS; row++) {
            const uint8_t *from = rows + BLOCK_BYTES * (row * blocks + block);
            if (lanes == LANES) { /* a copy of a size that the compiler knows */
                memcpy(w->rows[row], from, sizeof w->rows[row]);
            } else {
                memcpy(w->rows[row], from, BLOCK_BYTES * lanes);
            }
        }
        emit(w, lanes, out + LABELS_BYTES * block);
    }
    discard(w);
    return 1;
}
#endif /* DR_BLOCKS */

/* ---- The Python side ------------------------------------------------------------------------------------------ */

static int is_supported(void) {
#if DR_X86
    __builtin_cpu_init();
#endif
#if DR_BLOCKS
    return dr_has_aes();
#else
    return 0;
#endif
}

static PyObject *supported(PyObject *module, PyObject *unused) {
    (void)module;
    (void)unused;
    return PyBool_FromLong(is_supported());
}

#if DR_BLOCKS
static PyObject *refuse(const char *what) {
    PyErr_SetString(PyExc_ValueError, what);
    return NULL;
}

/* Read a position so that position + blocks does not wrap; returns 0 with an exception set when it is no such number. */
static int read_position(PyObject *number, size_t blocks, uint64_t *position) {
    unsigned long long value = PyLong_AsUnsignedLongLong(number);
    if (value == (unsigned long long)-1 && PyErr_Occurred()) {
        return 0;
    }
    if (value > UINT64_MAX - blocks) {
        refuse("the position plus the number of blocks must stay below 2^64");
        return 0;
    }
    *position = value;
    return 1;
}

/* Fill `e` and check the lengths that both parties share; returns 0 with an exception set. */
static int read_extension(extension *e, int field_bits, const Py_buffer *keys, const Py_buffer *nonces, PyObject *start,
                          size_t blocks, const Py_buffer *corrections, const Py_buffer *labels) {
    if (field_bits != 1 && field_bits != 2 && field_bits != 4 && field_bits != 8) {
        refuse("the field must have 1, 2, 4, or 8 bits");
        return 0;
    }
    e->field_bits = (size_t)field_bits;
    e->trees = LABEL_BITS / e->field_bits;
    e->leaves = (size_t)1 << e->field_bits;
    e->blocks = blocks;
    e->nonces = nonces->buf;
    if (blocks > (size_t)PY_SSIZE_T_MAX / LABELS_BYTES) { /* so that no product below wraps */
        refuse("too many blocks");
        return 0;
    }
    if ((size_t)keys->len != e->trees * e->leaves * BLOCK_BYTES || (size_t)nonces->len != e->trees * 8 ||
        (size_t)corrections->len != blocks * e->trees * BLOCK_BYTES || (size_t)labels->len != blocks * LABELS_BYTES) {
        refuse("the lengths of leaves, nonces, corrections, and labels do not fit together");
        return 0;
    }
    return read_position(start, blocks, &e->start);
}

static PyObject *expand(PyObject *module, PyObject *args) {
    (void)module;
    Py_buffer keys, nonces, out;
    PyObject *start, *result = NULL;
    uint64_t position;
    if (!PyArg_ParseTuple(args, "y*y*Ow*:expand", &keys, &nonces, &start, &out)) {
        return NULL;
    }
    size_t rows = (size_t)keys.len / BLOCK_BYTES;
    size_t blocks = rows ? (size_t)out.len / BLOCK_BYTES / rows : 0;
    if (!is_supported()) {
        refuse("this processor has no AES instructions");
    } else if ((size_t)keys.len != rows * BLOCK_BYTES || (size_t)nonces.len != rows * 8 ||
               (size_t)out.len != rows * blocks * BLOCK_BYTES) {
        refuse("the lengths of keys, nonces, and output do not fit together");
    } else if (read_position(start, blocks, &position)) {
        Py_BEGIN_ALLOW_THREADS
        run_expand(keys.buf, nonces.buf, rows, position, blocks, out.buf);
        Py_END_ALLOW_THREADS
        result = Py_NewRef(Py_None);
    }
    PyBuffer_Release(&keys);
    PyBuffer_Release(&nonces);
    PyBuffer_Release(&out);
    return result;
}

static PyObject *extend_receiver(PyObject *module, PyObject *args) {
    (void)module;
    int field_bits;
    Py_buffer keys, nonces, choices, corrections, labels;
    PyObject *start, *result = NULL;
    extension e;
    if (!PyArg_ParseTuple(args, "iy*y*Oy*w*w*:extend_receiver", &field_bits, &keys, &nonces, &start, &choices,
                          &corrections, &labels)) {
        return NULL;
    }
    size_t blocks = (size_t)choices.len / BLOCK_BYTES;
    if (!is_supported()) {
        refuse("this processor has no AES instructions");
    } else if ((size_t)choices.len != blocks * BLOCK_BYTES) {
        refuse("the choices must fill whole blocks of 16 bytes");
    } else if (read_extension(&e, field_bits, &keys, &nonces, start, blocks, &corrections, &labels)) {
        int done = 0;
        Py_BEGIN_ALLOW_THREADS
        workspace *w = prepare(&e, keys.buf);
        if (w) {
            run_receiver(&e, w, choices.buf, corrections.buf, labels.buf);
            discard(w);
            done = 1;
        }
        Py_END_ALLOW_THREADS
        result = done ? Py_NewRef(Py_None) : PyErr_NoMemory();
    }
    PyBuffer_Release(&keys);
    PyBuffer_Release(&nonces);
    PyBuffer_Release(&choices);
    PyBuffer_Release(&corrections);
    PyBuffer_Release(&labels);
    return result;
}

static PyObject *extend_sender(PyObject *module, PyObject *args) {
    (void)module;
    int field_bits;
    Py_buffer keys, nonces, delta, corrections, labels;
    PyObject *start, *result = NULL;
    extension e;
    if (!PyArg_ParseTuple(args, "iy*y*Oy*y*w*:extend_sender", &field_bits, &keys, &nonces, &start, &delta, &corrections,
                          &labels)) {
        return NULL;
    }
    size_t blocks = (size_t)labels.len / LABELS_BYTES;
    if (!is_supported()) {
        refuse("this processor has no AES instructions");
    } else if (delta.len != BLOCK_BYTES) {
        refuse("delta must have 16 bytes");
    } else if (read_extension(&e, field_bits, &keys, &nonces, start, blocks, &corrections, &labels)) {
        int done = 0;
        Py_BEGIN_ALLOW_THREADS
        workspace *w = prepare(&e, keys.buf);
        if (w) {
            run_sender(&e, w, delta.buf, corrections.buf, labels.buf);
            discard(w);
            done = 1;
        }
        Py_END_ALLOW_THREADS
        result = done ? Py_NewRef(Py_None) : PyErr_NoMemory();
    }
    PyBuffer_Release(&keys);
    PyBuffer_Release(&nonces);
    PyBuffer_Release(&delta);
    PyBuffer_Release(&corrections);
    PyBuffer_Release(&labels);
    return result;
}

static PyObject *transpose(PyObject *module, PyObject *args) {
    (void)module;
    Py_buffer rows, out;
    PyObject *result = NULL;
    if (!PyArg_ParseTuple(args, "y*w*:transpose", &rows, &out)) {
        return NULL;
    }
    size_t blocks = (size_t)rows.len / LABELS_BYTES;
    if (!is_supported()) {
        refuse("this processor has no AES instructions");
    } else if ((size_t)rows.len != blocks * LABELS_BYTES || out.len != rows.len) {
        refuse("rows and output must both have 2048 bytes per block of 128 columns");
    } else {
        int done;
        Py_BEGIN_ALLOW_THREADS
        done = run_transpose(rows.buf, blocks, out.buf);
        Py_END_ALLOW_THREADS
        result = done ? Py_NewRef(Py_None) : PyErr_NoMemory();
    }
    PyBuffer_Release(&rows);
    PyBuffer_Release(&out);
    return result;
}
#endif /* DR_BLOCKS */

static PyMethodDef methods[] = {
    {"supported", supported, METH_NOARGS, "Tell whether this processor can run the kernel."},
#if DR_BLOCKS
    {"expand", expand, METH_VARARGS, "expand(keys, nonces, start, out): AES-128 counter-mode streams, a row per key."},
    {"extend_receiver", extend_receiver, METH_VARARGS,
     "extend_receiver(field_bits, leaves, nonces, start, choices, corrections, labels): write the last two."},
    {"extend_sender", extend_sender, METH_VARARGS,
     "extend_sender(field_bits, leaves, nonces, start, delta, corrections, labels): write the last one."},
    {"transpose", transpose, METH_VARARGS, "transpose(rows, out): 128 by n bits to n by 128."},
#endif
    {NULL, NULL, 0, NULL},
};

static PyModuleDef_Slot slots[] = {{0, NULL}};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT,
    .m_name = "_kernel",
    .m_doc = "Compiled arithmetic of the oblivious transfer extension.",
    .m_size = 0,
    .m_methods = methods,
    .m_slots = slots,
};

PyMODINIT_FUNC PyInit__kernel(void);
PyMODINIT_FUNC PyInit__kernel(void) { return PyModuleDef_Init(&definition); }
