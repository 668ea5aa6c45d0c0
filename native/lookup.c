/* deepreduce.private.protocol._kernel: one-time truth tables, the arithmetic of src/deepreduce/private/protocol/lookup.py.
 *
 *   carries           the client's tables, from its shares
 *   permute_client    its shares of them permuted, and what the server needs for its own
 *   permute_server    the server's
 *
 * A table of 2^L bits is 2^L / 64 words, at least one. Bit j of an index halves it: below HALVES by bits within each word, above by
 * words. Level j of L levels joins each table with a pad of half its size. All of a table's levels are done before the next table, so
 * that it stays in registers; L is a constant in each of the bodies, so that the shifts are.
 *
 * Functions from buffers to buffers. Every size is checked here, against the buffers themselves, before memory is touched. Nothing
 * branches on or indexes by what the buffers hold. The GIL is released while the work runs: no other thread may write into them then.
 */
#define PY_SSIZE_T_CLEAN
#define Py_LIMITED_API 0x030B0000
#include <Python.h>

#include <stddef.h>
#include <stdint.h>

#define MOST_BITS 10 /* of an index */
#define HALVES 6     /* bits of an index that are places in a word */
#define MOST_WORDS (1 << (MOST_BITS - HALVES))

#if defined(__GNUC__) || defined(__clang__)
#define ALWAYS static inline __attribute__((always_inline))
#else
#define ALWAYS static inline
#endif

/* Hide from the compiler where a word comes from, so that it makes no branch of a mask. */
ALWAYS uint64_t hidden(uint64_t word) {
#if defined(__GNUC__) || defined(__clang__)
    __asm__("" : "+r"(word));
    return word;
#else
    volatile uint64_t kept = word;
    return kept;
#endif
}

/* In words of 64 bits the places whose bit j is 0. */
static const uint64_t LOW[HALVES] = {0x5555555555555555u, 0x3333333333333333u, 0x0f0f0f0f0f0f0f0fu,
                                     0x00ff00ff00ff00ffu, 0x0000ffff0000ffffu, 0x00000000ffffffffu};

ALWAYS size_t words_of(int bits) { return bits <= HALVES ? 1 : (size_t)1 << (bits - HALVES); }

ALWAYS size_t pad_words_of(int bits) { return bits <= HALVES + 1 ? 1 : (size_t)1 << (bits - HALVES - 1); }

/* Where word i of a pad lies in the lower half of a table by bit j; in the upper one it is a block further. */
ALWAYS size_t lower(size_t i, size_t block) { return i / block * 2 * block + i % block; }

/* Write the XOR of a table's halves by bit j, packed as pads are. */
ALWAYS void halves(const uint64_t *table, int bits, int j, uint64_t *out) {
    const size_t words = words_of(bits), half = pad_words_of(bits);
    if (j >= HALVES) {
        const size_t block = (size_t)1 << (j - HALVES);
        for (size_t i = 0; i < half; i++) {
            out[i] = table[lower(i, block)] ^ table[lower(i, block) + block];
        }
        return;
    }
    for (size_t i = 0; i < half; i++) {
        out[i] = (table[i] ^ table[i] >> (1 << j)) & LOW[j];
        if (words > 1) {
            out[i] |= ((table[half + i] ^ table[half + i] >> (1 << j)) & LOW[j]) << (1 << j);
        }
    }
}

/* Add a pad to both halves of a table by bit j. */
ALWAYS void add_spread(uint64_t *table, const uint64_t *pad, int bits, int j) {
    const size_t words = words_of(bits), half = pad_words_of(bits);
    if (j >= HALVES) {
        const size_t block = (size_t)1 << (j - HALVES);
        for (size_t i = 0; i < half; i++) {
            table[lower(i, block)] ^= pad[i];
            table[lower(i, block) + block] ^= pad[i];
        }
        return;
    }
    for (size_t i = 0; i < half; i++) {
        const uint64_t own = pad[i] & LOW[j], other = pad[i] >> (1 << j) & LOW[j];
        table[i] ^= own | own << (1 << j);
        if (words > 1) {
            table[half + i] ^= other | other << (1 << j);
        }
    }
}

/* Change places of a table's halves by bit j where `chosen` is all ones, and leave them where it is 0. */
ALWAYS void swap_chosen(uint64_t *table, int bits, int j, uint64_t chosen) {
    const size_t words = words_of(bits);
    if (j >= HALVES) {
        const size_t block = (size_t)1 << (j - HALVES);
        for (size_t i = 0; i < words / 2; i++) {
            uint64_t *one = table + lower(i, block), *other = one + block;
            const uint64_t both = (*one ^ *other) & chosen;
            *one ^= both;
            *other ^= both;
        }
        return;
    }
    for (size_t i = 0; i < words; i++) {
        const uint64_t both = (table[i] ^ table[i] >> (1 << j)) & LOW[j] & chosen;
        table[i] ^= both | both << (1 << j);
    }
}

typedef struct {
    size_t count;
    uint64_t *tables;               /* [count, words] */
    const uint64_t *zeros, *ones;   /* the client's pads, [level, count, pad words] */
    uint64_t *sent;                 /* y, likewise */
    const uint64_t *indices;        /* a, [count] */
    const uint64_t *pads, *received; /* the server's, and y */
} Job;

ALWAYS void client_level(const Job *job, uint64_t *table, size_t n, int bits, int j) {
    const size_t half = pad_words_of(bits), place = ((size_t)j * job->count + n) * half;
    uint64_t difference[MOST_WORDS];
    if (j >= bits) {
        return;
    }
    halves(table, bits, j, difference);
    for (size_t i = 0; i < half; i++) {
        job->sent[place + i] = job->zeros[place + i] ^ job->ones[place + i] ^ difference[i];
    }
    add_spread(table, job->zeros + place, bits, j);
}

ALWAYS void server_level(const Job *job, uint64_t *table, size_t n, int bits, int j) {
    const size_t half = pad_words_of(bits), place = ((size_t)j * job->count + n) * half;
    const uint64_t chosen = hidden((uint64_t)0 - (job->indices[n] >> j & 1));
    uint64_t pad[MOST_WORDS];
    if (j >= bits) {
        return;
    }
    swap_chosen(table, bits, j, chosen);
    for (size_t i = 0; i < half; i++) {
        pad[i] = job->pads[place + i] ^ (job->received[place + i] & chosen);
    }
    add_spread(table, pad, bits, j);
}

#define EVERY_LEVEL(LEVEL) \
    LEVEL(9) LEVEL(8) LEVEL(7) LEVEL(6) LEVEL(5) LEVEL(4) LEVEL(3) LEVEL(2) LEVEL(1) LEVEL(0)

ALWAYS void tables_of(const Job *job, int bits, int server) {
    const size_t words = words_of(bits);
    for (size_t n = 0; n < job->count; n++) {
        uint64_t table[MOST_WORDS];
        for (size_t i = 0; i < words; i++) {
            table[i] = server ? 0 : job->tables[n * words + i];
        }
#define LEVEL(j) server ? server_level(job, table, n, bits, j) : client_level(job, table, n, bits, j);
        EVERY_LEVEL(LEVEL)
#undef LEVEL
        for (size_t i = 0; i < words; i++) {
            job->tables[n * words + i] = table[i];
        }
    }
}

static void permute(const Job *job, int bits, int server) {
#define BODY(own) \
    case own: \
        if (server) { \
            tables_of(job, own, 1); \
        } else { \
            tables_of(job, own, 0); \
        } \
        break;
    switch (bits) {
        BODY(1) BODY(2) BODY(3) BODY(4) BODY(5) BODY(6) BODY(7) BODY(8) BODY(9) BODY(10)
    }
#undef BODY
}

/* Write for each value v the table that is 1 at u where u + v >= 2^bits. */
static void carries(const uint64_t *values, size_t count, int bits, uint64_t *out) {
    const size_t words = words_of(bits);
    const uint64_t whole = bits < HALVES ? ((uint64_t)1 << (1 << bits)) - 1 : ~(uint64_t)0;
    for (size_t n = 0; n < count; n++) {
        const int64_t first = (int64_t)(((uint64_t)1 << bits) - values[n]);
        for (size_t i = 0; i < words; i++) {
            const int64_t below = first - (int64_t)(64 * i); /* so many zeros, at least none and at most all */
            const uint64_t is_inside = hidden((uint64_t)0 - (uint64_t)(below < 64)), is_begun = hidden((uint64_t)0 - (uint64_t)(below <= 0));
            out[n * words + i] = whole & ((whole << (below & 63) & is_inside & ~is_begun) | (whole & is_begun));
        }
    }
}

static int leave(Py_buffer *buffers, int count, int fits) {
    for (int i = 0; i < count; i++) {
        PyBuffer_Release(&buffers[i]);
    }
    if (!fits) {
        PyErr_SetString(PyExc_ValueError, "sizes are in range and match the buffers");
    }
    return fits;
}

/* Do these buffers hold `count` times so many words, and can be read as such? */
static int holds(const Py_buffer *buffer, size_t count, size_t words) {
    return (uintptr_t)buffer->buf % 8 == 0 && count <= (size_t)PY_SSIZE_T_MAX / 8 / words && (size_t)buffer->len == 8 * count * words;
}

static int are_apart(const Py_buffer *a, const Py_buffer *b) {
    const uintptr_t x = (uintptr_t)a->buf, y = (uintptr_t)b->buf;
    return x + (uintptr_t)a->len <= y || y + (uintptr_t)b->len <= x;
}

/* carries(values, index bits, out) */
static PyObject *py_carries(PyObject *self, PyObject *args) {
    Py_buffer b[2], *values = b, *out = b + 1;
    int bits, fits;
    (void)self;
    if (!PyArg_ParseTuple(args, "y*iw*", values, &bits, out)) {
        return NULL;
    }
    const size_t count = (size_t)values->len / 8;
    fits = bits >= 1 && bits <= MOST_BITS && holds(values, count, 1) && holds(out, count, words_of(bits)) && are_apart(values, out);
    if (fits) {
        Py_BEGIN_ALLOW_THREADS
        carries(values->buf, count, bits, out->buf);
        Py_END_ALLOW_THREADS
    }
    return leave(b, 2, fits) ? Py_NewRef(Py_None) : NULL;
}

/* permute_client(tables, zeros, ones, index bits, sent): the tables in place */
static PyObject *py_permute_client(PyObject *self, PyObject *args) {
    Py_buffer b[4], *tables = b, *zeros = b + 1, *ones = b + 2, *sent = b + 3;
    int bits, fits;
    (void)self;
    if (!PyArg_ParseTuple(args, "w*y*y*iw*", tables, zeros, ones, &bits, sent)) {
        return NULL;
    }
    fits = bits >= 1 && bits <= MOST_BITS;
    if (fits) {
        const size_t count = (size_t)tables->len / (8 * words_of(bits)), each = (size_t)bits * pad_words_of(bits);
        fits = holds(tables, count, words_of(bits)) && holds(zeros, count, each) && holds(ones, count, each) && holds(sent, count, each) &&
               are_apart(tables, zeros) && are_apart(tables, ones) && are_apart(tables, sent) && are_apart(sent, zeros) && are_apart(sent, ones);
        if (fits) {
            const Job job = {.count = count, .tables = tables->buf, .zeros = zeros->buf, .ones = ones->buf, .sent = sent->buf};
            Py_BEGIN_ALLOW_THREADS
            permute(&job, bits, 0);
            Py_END_ALLOW_THREADS
        }
    }
    return leave(b, 4, fits) ? Py_NewRef(Py_None) : NULL;
}

/* permute_server(indices, pads, received, index bits, out) */
static PyObject *py_permute_server(PyObject *self, PyObject *args) {
    Py_buffer b[4], *indices = b, *pads = b + 1, *received = b + 2, *out = b + 3;
    int bits, fits;
    (void)self;
    if (!PyArg_ParseTuple(args, "y*y*y*iw*", indices, pads, received, &bits, out)) {
        return NULL;
    }
    fits = bits >= 1 && bits <= MOST_BITS;
    if (fits) {
        const size_t count = (size_t)indices->len / 8, each = (size_t)bits * pad_words_of(bits);
        fits = holds(indices, count, 1) && holds(pads, count, each) && holds(received, count, each) && holds(out, count, words_of(bits)) &&
               are_apart(out, indices) && are_apart(out, pads) && are_apart(out, received);
        if (fits) {
            const Job job = {.count = count, .tables = out->buf, .indices = indices->buf, .pads = pads->buf, .received = received->buf};
            Py_BEGIN_ALLOW_THREADS
            permute(&job, bits, 1);
            Py_END_ALLOW_THREADS
        }
    }
    return leave(b, 4, fits) ? Py_NewRef(Py_None) : NULL;
}

static PyMethodDef methods[] = {
    {"carries", py_carries, METH_VARARGS, "carries(values, index bits, out)"},
    {"permute_client", py_permute_client, METH_VARARGS, "permute_client(tables, zeros, ones, index bits, sent): the tables in place"},
    {"permute_server", py_permute_server, METH_VARARGS, "permute_server(indices, pads, received, index bits, out)"},
    {NULL, NULL, 0, NULL},
};

static PyModuleDef_Slot slots[] = {{0, NULL}};

static struct PyModuleDef module = {
    PyModuleDef_HEAD_INIT, "deepreduce.private.protocol._kernel", "One-time truth tables.", 0, methods, slots, NULL, NULL, NULL,
};

PyMODINIT_FUNC PyInit__kernel(void) { return PyModuleDef_Init(&module); }
