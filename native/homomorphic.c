/* deepreduce.private.homomorphic._kernel: arithmetic modulo the primes of a ciphertext, beside SEAL's.
 *
 *   sums     what a server adds up for one answer: ciphertexts times polynomials of weights, value by value. Products are added in
 *            128 bits and reduced once, at the end, instead of one by one
 *   cut      numbers modulo the product of one or two primes, rounded to their high bits, as bytes
 *   restore  the way back, with the bound that a stranger's numbers must keep
 *   centred  random bits as numbers around 0, modulo every prime
 *
 * All give the least residues, as SEAL does.
 *
 * Functions from buffers to buffers. Every size is checked here, against the buffers themselves, before memory is touched. The
 * GIL is released while the work runs.
 */
#define PY_SSIZE_T_CLEAN
#define Py_LIMITED_API 0x030B0000
#include <Python.h>

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#if defined(__SIZEOF_INT128__) && defined(__LP64__) && !defined(_WIN32) && __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
#define DR_KERNEL 1
__extension__ typedef unsigned __int128 Wide;
#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif
#else
#define DR_KERNEL 0
#endif

#define MOST_DEGREE 65536
#define MOST_PRIMES 16
#define MOST_CENTRED_BITS 192
#define MOST_BITS 60 /* of a prime */
#define HALF_BITS 30 /* numbers are multiplied in two halves */
#define HALF (((uint64_t)1 << HALF_BITS) - 1)
#define ROUND 16     /* so many products of halves fit into 64 bits together */
#define FEW 2        /* so many are read side by side */
#define BLOCK 256    /* values whose sums stay in the first cache */

#if DR_KERNEL

/* A prime, and what Montgomery's reduction needs (Mathematics of Computation 44, 1985): S 2^-64 modulo p of any S < p 2^64 is
 * the high word of S - p (S p^-1 mod 2^64), or p more. */
typedef struct {
    uint64_t p, inverse; /* p^-1 modulo 2^64 */
    uint64_t back;       /* 2^128 modulo p: reducing twice divides by as much */
} Prime;

static Prime prime_of(uint64_t p) {
    Prime prime = {p, p, (uint64_t)(((Wide)0 - 1) % p + 1) % p};
    for (int i = 0; i < 5; i++) { /* 3 right bits, then twice as many each time */
        prime.inverse *= 2 - p * prime.inverse;
    }
    return prime;
}

static inline uint64_t reduce(const Prime *prime, uint64_t low, uint64_t high) {
    const uint64_t taken = (uint64_t)(((Wide)(low * prime->inverse) * prime->p) >> 64);
    return high - taken + (high < taken ? prime->p : 0);
}

/* (high 2^64 + low) modulo the prime, for high below it. */
static inline uint64_t remainder_of(const Prime *prime, uint64_t low, uint64_t high) {
    const Wide scaled = (Wide)reduce(prime, low, high) * prime->back;
    return reduce(prime, (uint64_t)scaled, (uint64_t)(scaled >> 64));
}

typedef struct {
    size_t degree, primes, terms;
    const uint64_t *inputs;  /* [ciphertext, polynomial (2), prime, value] */
    const uint64_t *weights; /* [polynomial, prime, value] */
    const uint32_t *pairs;   /* [term, 2]: ciphertext, polynomial of weights */
    const uint64_t *moduli;
    uint64_t *out; /* [polynomial (2), prime, value] */
} Sums;

/* The sums of a block for one prime, of both polynomials: low and high words, modulo 2^64 times the prime; and of the products
 * (a_1 2^30 + a_0) (b_1 2^30 + b_0) since they were last collected the four parts, each summed up by itself. */
typedef struct {
    uint64_t low[2][BLOCK], high[2][BLOCK], parts[2][4][BLOCK];
} Block;

/* Where the factors of a few products lie, of the ciphertexts both polynomials; and the largest residue. */
typedef struct {
    const uint64_t *inputs[2][FEW], *weights[FEW];
    uint64_t largest;
    size_t terms;
} Factors;

/* Add products at values [first, count), one by one. Return all bits of the weights, and of what they lack to the largest: of a
 * weight that is no residue one of the two has more than MOST_BITS. */
static uint64_t add_singly(const Factors *factors, Block *block, size_t first, size_t count) {
    uint64_t bits = 0;
    for (size_t t = 0; t < factors->terms; t++) {
        for (size_t half = 0; half < 2; half++) {
            for (size_t i = first; i < count; i++) {
                const uint64_t a = factors->inputs[half][t][i], b = factors->weights[t][i];
                bits |= b | (factors->largest - b);
                block->parts[half][0][i] += (a & HALF) * (b & HALF);
                block->parts[half][1][i] += (a >> HALF_BITS) * (b & HALF);
                block->parts[half][2][i] += (a & HALF) * (b >> HALF_BITS);
                block->parts[half][3][i] += (a >> HALF_BITS) * (b >> HALF_BITS);
            }
        }
    }
    return bits;
}

#if defined(__x86_64__)
#define LANES 4
#define TARGET __attribute__((target("avx2")))
typedef uint64_t Vector __attribute__((vector_size(32)));
#define LOAD(p) ((Vector)_mm256_loadu_si256((const __m256i *)(const void *)(p)))
#define STORE(p, x) _mm256_storeu_si256((__m256i *)(void *)(p), (__m256i)(x))
#define TIMES(a, b) ((Vector)_mm256_mul_epu32((__m256i)(a), (__m256i)(b)))
#define HAS_VECTORS() __builtin_cpu_supports("avx2")
#elif defined(__aarch64__)
#define LANES 2
#define TARGET
typedef uint64_t Vector __attribute__((vector_size(16)));
#define LOAD(p) ((Vector)vld1q_u64(p))
#define STORE(p, x) vst1q_u64(p, (uint64x2_t)(x))
#define TIMES(a, b) ((Vector)vmull_u32(vmovn_u64((uint64x2_t)(a)), vmovn_u64((uint64x2_t)(b))))
#define HAS_VECTORS() 1
#endif

#ifdef LANES
/* The same for all values; `terms` is a constant to the compiler. TIMES multiplies the low 32 bits of each lane. */
TARGET static inline __attribute__((always_inline)) uint64_t add_vectors(const Factors *factors, Block *block, size_t count, size_t terms) {
    Vector bits = {0};
    uint64_t all = add_singly(factors, block, count - count % LANES, count);
    for (size_t i = 0; i + LANES <= count; i += LANES) {
        Vector parts[2][4];
        for (size_t half = 0; half < 2; half++) {
            for (size_t k = 0; k < 4; k++) {
                parts[half][k] = LOAD(&block->parts[half][k][i]);
            }
        }
        for (size_t t = 0; t < terms; t++) {
            const Vector b = LOAD(factors->weights[t] + i), b_low = b & HALF, b_high = b >> HALF_BITS;
            bits |= b | (factors->largest - b);
            for (size_t half = 0; half < 2; half++) {
                const Vector a = LOAD(factors->inputs[half][t] + i), a_low = a & HALF, a_high = a >> HALF_BITS;
                parts[half][0] += TIMES(a_low, b_low);
                parts[half][1] += TIMES(a_high, b_low);
                parts[half][2] += TIMES(a_low, b_high);
                parts[half][3] += TIMES(a_high, b_high);
            }
        }
        for (size_t half = 0; half < 2; half++) {
            for (size_t k = 0; k < 4; k++) {
                STORE(&block->parts[half][k][i], parts[half][k]);
            }
        }
    }
    for (size_t lane = 0; lane < LANES; lane++) {
        all |= bits[lane];
    }
    return all;
}

TARGET static uint64_t add_few(const Factors *factors, Block *block, size_t count) {
    return add_vectors(factors, block, count, FEW);
}

TARGET static uint64_t add_fewer(const Factors *factors, Block *block, size_t count) {
    return add_vectors(factors, block, count, factors->terms);
}
#endif

static uint64_t add(const Factors *factors, Block *block, size_t count) {
#ifdef LANES
    if (HAS_VECTORS()) {
        return factors->terms == FEW ? add_few(factors, block, count) : add_fewer(factors, block, count);
    }
#endif
    return add_singly(factors, block, 0, count);
}

/* Put the parts of at most ROUND products together, and begin anew. */
static void collect(Block *block, uint64_t p, size_t count) {
    for (size_t half = 0; half < 2; half++) {
        for (size_t i = 0; i < count; i++) {
            const Wide middle = (Wide)block->parts[half][1][i] + block->parts[half][2][i];
            const Wide sum = (((Wide)block->high[half][i] << 64) | block->low[half][i]) + block->parts[half][0][i] +
                             (middle << HALF_BITS) + ((Wide)block->parts[half][3][i] << 2 * HALF_BITS);
            const uint64_t top = (uint64_t)(sum >> 64);
            block->low[half][i] = (uint64_t)sum;
            block->high[half][i] = top - (top >= p ? p : 0); /* below p again: ROUND products are at most 2^64 p */
        }
    }
    memset(block->parts, 0, sizeof block->parts);
}

/* Compute values [first, first + count) for one prime. Return bits as `add` does. */
static uint64_t sum_block(const Sums *s, const Prime *prime, size_t number, size_t first, size_t count) {
    const size_t polynomial = s->primes * s->degree, place = number * s->degree + first;
    Block block;
    uint64_t bits = 0;
    memset(&block, 0, sizeof block);
    for (size_t term = 0; term < s->terms; term += FEW) {
        Factors factors = {.largest = prime->p - 1, .terms = s->terms - term < FEW ? s->terms - term : FEW};
        for (size_t t = 0; t < factors.terms; t++) {
            const uint32_t *pair = s->pairs + 2 * (term + t);
            factors.inputs[0][t] = s->inputs + (size_t)pair[0] * 2 * polynomial + place;
            factors.inputs[1][t] = factors.inputs[0][t] + polynomial;
            factors.weights[t] = s->weights + pair[1] * polynomial + place;
        }
        bits |= add(&factors, &block, count);
        if ((term + FEW) % ROUND == 0) {
            collect(&block, prime->p, count);
        }
    }
    collect(&block, prime->p, count);
    for (size_t half = 0; half < 2; half++) {
        uint64_t *out = s->out + half * polynomial + place;
        for (size_t i = 0; i < count; i++) {
            out[i] = remainder_of(prime, block.low[half][i], block.high[half][i]);
        }
    }
    return bits;
}

/* Return whether all weights were residues. */
static int sums(const Sums *s) {
    uint64_t bits = 0;
    for (size_t number = 0; number < s->primes; number++) {
        const Prime prime = prime_of(s->moduli[number]);
        for (size_t first = 0; first < s->degree; first += BLOCK) {
            bits |= sum_block(s, &prime, number, first, s->degree - first < BLOCK ? s->degree - first : BLOCK);
        }
    }
    return bits >> MOST_BITS == 0;
}

static uint64_t load_word(const uint8_t *from, size_t size) {
    uint64_t word = 0;
    for (size_t i = 0; i < size; i++) {
        word |= (uint64_t)from[i] << 8 * i;
    }
    return word;
}

static Wide load_wide(const uint8_t *from, size_t size) {
    return size > 8 ? load_word(from, 8) | (Wide)load_word(from + 8, size - 8) << 64 : load_word(from, size);
}

/* residues [primes, count] to out [count, size]; of two primes p, q with p^-1 modulo q. */
static void cut(const uint64_t *residues, const uint64_t *moduli, size_t primes, uint64_t inverse, size_t drop, size_t size, uint8_t *out,
                size_t count) {
    const Prime last = prime_of(moduli[primes - 1]);
    const Wide modulus = primes == 2 ? (Wide)moduli[0] * moduli[1] : moduli[0];
    for (size_t i = 0; i < count; i++) {
        Wide number = residues[i];
        if (primes == 2) { /* r + p ((s - r) / p modulo q), Chinese remainders */
            const uint64_t r = remainder_of(&last, residues[i], 0), s = residues[count + i];
            const Wide scaled = (Wide)(s - r + (s < r ? last.p : 0)) * inverse;
            number += (Wide)moduli[0] * remainder_of(&last, (uint64_t)scaled, (uint64_t)(scaled >> 64));
        }
        number = (number + (drop ? (Wide)1 << (drop - 1) : 0)) >> drop;
        if (number > (modulus - 1) >> drop) { /* what rounds up to the modulus or past it is 0 */
            number = 0;
        }
        for (size_t byte = 0; byte < size; byte++) {
            out[i * size + byte] = (uint8_t)(number >> 8 * byte);
        }
    }
}

/* data [count, size] to out [primes, count]. Tell whether all numbers are below the modulus. */
static int restore(const uint8_t *data, const uint64_t *moduli, size_t primes, size_t drop, size_t size, uint64_t *out, size_t count) {
    const Wide most = ((primes == 2 ? (Wide)moduli[0] * moduli[1] : moduli[0]) - 1) >> drop;
    Prime known[2];
    int below = 1;
    for (size_t k = 0; k < primes; k++) {
        known[k] = prime_of(moduli[k]);
    }
    for (size_t i = 0; i < count; i++) {
        const Wide high = load_wide(data + i * size, size), number = high << drop;
        below &= high <= most;
        if (primes == 1) {
            out[i] = (uint64_t)number;
            continue;
        }
        for (size_t k = 0; k < primes; k++) {
            out[k * count + i] = remainder_of(&known[k], (uint64_t)number, remainder_of(&known[k], (uint64_t)(number >> 64), 0));
        }
    }
    return below;
}

/* octets [count, size] to out [primes, count]: their low `bits`, less 2^(bits - 1). */
static void centred(const uint8_t *octets, const uint64_t *moduli, size_t primes, size_t bits, size_t size, uint64_t *out, size_t count) {
    const size_t words = (size + 7) / 8;
    for (size_t k = 0; k < primes; k++) {
        const Prime prime = prime_of(moduli[k]);
        uint64_t half = 1;
        for (size_t bit = 1; bit < bits; bit++) {
            half = 2 * half % prime.p;
        }
        for (size_t i = 0; i < count; i++) {
            uint64_t rest = 0;
            for (size_t w = words; w-- > 0;) {
                uint64_t word = load_word(octets + i * size + 8 * w, size - 8 * w < 8 ? size - 8 * w : 8);
                if (w == words - 1 && bits % 64) {
                    word &= ((uint64_t)1 << bits % 64) - 1;
                }
                rest = remainder_of(&prime, word, rest);
            }
            out[k * count + i] = rest - half + (rest < half ? prime.p : 0);
        }
    }
}

/* Do words of this size lie where they can be read? */
static int is_aligned(const Py_buffer *buffer, size_t size) { return (uintptr_t)buffer->buf % size == 0; }

/* How many moduli a buffer holds; 0 unless these are 1 to `most` odd numbers from 3 on, of at most 60 bits. */
static size_t primes_in(const Py_buffer *buffer, size_t most) {
    const uint64_t *moduli = buffer->buf;
    const size_t primes = (size_t)buffer->len / 8;
    if (!is_aligned(buffer, 8) || buffer->len % 8 != 0 || primes > most) {
        return 0;
    }
    for (size_t i = 0; i < primes; i++) {
        if (moduli[i] % 2 == 0 || moduli[i] < 3 || moduli[i] >> MOST_BITS) {
            return 0;
        }
    }
    return primes;
}
#endif

static PyObject *unfit(void) {
    PyErr_SetString(PyExc_ValueError, "sizes are in range, fit together, and match the buffers, which are aligned; primes are odd and have at most 60 bits");
    return NULL;
}

static PyObject *py_cut(PyObject *self, PyObject *args) {
    Py_buffer residues, moduli, out;
    unsigned long long inverse;
    Py_ssize_t drop, size;
    int fits = 0;
    (void)self;
    if (!PyArg_ParseTuple(args, "y*y*Knnw*", &residues, &moduli, &inverse, &drop, &size, &out)) {
        return NULL;
    }
#if DR_KERNEL
    const size_t primes = primes_in(&moduli, 2);
    if (primes && is_aligned(&residues, 8) && (size_t)residues.len % (8 * primes) == 0 && drop >= 0 && drop < 2 * MOST_BITS && size >= 1 &&
        size <= 16) {
        const size_t count = (size_t)residues.len / (8 * primes);
        fits = (size_t)out.len == count * (size_t)size && (primes == 1 || inverse < ((const uint64_t *)moduli.buf)[1]);
        if (fits) {
            Py_BEGIN_ALLOW_THREADS
            cut(residues.buf, moduli.buf, primes, inverse, (size_t)drop, (size_t)size, out.buf, count);
            Py_END_ALLOW_THREADS
        }
    }
#endif
    PyBuffer_Release(&residues);
    PyBuffer_Release(&moduli);
    PyBuffer_Release(&out);
    return fits ? Py_NewRef(Py_None) : unfit();
}

static PyObject *py_restore(PyObject *self, PyObject *args) {
    Py_buffer data, moduli, out;
    Py_ssize_t drop, size;
    int fits = 0, below = 0;
    (void)self;
    if (!PyArg_ParseTuple(args, "y*y*nnw*", &data, &moduli, &drop, &size, &out)) {
        return NULL;
    }
#if DR_KERNEL
    const size_t primes = primes_in(&moduli, 2);
    if (primes && is_aligned(&out, 8) && drop >= 0 && drop < 2 * MOST_BITS && size >= 1 && size <= 16 && data.len % size == 0) {
        const size_t count = (size_t)data.len / (size_t)size;
        fits = (size_t)out.len % (8 * primes) == 0 && (size_t)out.len / (8 * primes) == count;
        if (fits) {
            Py_BEGIN_ALLOW_THREADS
            below = restore(data.buf, moduli.buf, primes, (size_t)drop, (size_t)size, out.buf, count);
            Py_END_ALLOW_THREADS
        }
    }
#endif
    PyBuffer_Release(&data);
    PyBuffer_Release(&moduli);
    PyBuffer_Release(&out);
    return fits ? PyBool_FromLong(below) : unfit();
}

static PyObject *py_centred(PyObject *self, PyObject *args) {
    Py_buffer octets, moduli, out;
    Py_ssize_t bits;
    int fits = 0;
    (void)self;
    if (!PyArg_ParseTuple(args, "y*y*nw*", &octets, &moduli, &bits, &out)) {
        return NULL;
    }
#if DR_KERNEL
    const size_t primes = primes_in(&moduli, MOST_PRIMES);
    if (primes && is_aligned(&out, 8) && bits >= 1 && bits <= MOST_CENTRED_BITS) {
        const size_t size = ((size_t)bits + 7) / 8, count = (size_t)octets.len / size;
        fits = (size_t)octets.len % size == 0 && (size_t)out.len % (8 * primes) == 0 && (size_t)out.len / (8 * primes) == count;
        if (fits) {
            Py_BEGIN_ALLOW_THREADS
            centred(octets.buf, moduli.buf, primes, (size_t)bits, size, out.buf, count);
            Py_END_ALLOW_THREADS
        }
    }
#endif
    PyBuffer_Release(&octets);
    PyBuffer_Release(&moduli);
    PyBuffer_Release(&out);
    return fits ? Py_NewRef(Py_None) : unfit();
}

static PyObject *py_sums(PyObject *self, PyObject *args) {
    Py_buffer inputs, weights, pairs, moduli, out;
    Py_ssize_t degree;
    int fits = 0, right = 0;
    (void)self;
    if (!PyArg_ParseTuple(args, "y*y*y*y*w*n", &inputs, &weights, &pairs, &moduli, &out, &degree)) {
        return NULL;
    }
#if DR_KERNEL
    const size_t primes = primes_in(&moduli, MOST_PRIMES), terms = (size_t)pairs.len / 8;
    if (primes && is_aligned(&inputs, 8) && is_aligned(&weights, 8) && is_aligned(&pairs, 4) && is_aligned(&out, 8) && degree >= 1 &&
        degree <= MOST_DEGREE && pairs.len % 8 == 0) {
        const Sums s = {(size_t)degree, primes, terms, inputs.buf, weights.buf, pairs.buf, moduli.buf, out.buf};
        const size_t polynomial = 8 * primes * (size_t)degree;
        fits = (size_t)out.len == 2 * polynomial && (size_t)inputs.len % (2 * polynomial) == 0 && (size_t)weights.len % polynomial == 0;
        for (size_t t = 0; fits && t < terms; t++) {
            fits = s.pairs[2 * t] < (size_t)inputs.len / (2 * polynomial) && s.pairs[2 * t + 1] < (size_t)weights.len / polynomial;
        }
        if (fits) {
            Py_BEGIN_ALLOW_THREADS
            right = sums(&s);
            Py_END_ALLOW_THREADS
        }
    }
#endif
    PyBuffer_Release(&inputs);
    PyBuffer_Release(&weights);
    PyBuffer_Release(&pairs);
    PyBuffer_Release(&moduli);
    PyBuffer_Release(&out);
    return fits ? PyBool_FromLong(right) : unfit();
}

static PyObject *py_supported(PyObject *self, PyObject *unused) {
    (void)self;
    (void)unused;
    return PyBool_FromLong(DR_KERNEL);
}

static PyMethodDef methods[] = {
    {"supported", py_supported, METH_NOARGS, "supported() -> bool: whether this kernel runs here."},
    {"sums", py_sums, METH_VARARGS,
     "sums(inputs, weights, pairs, primes, out, degree) -> bool: write the sums of products; tell whether all weights were\n"
     "residues. The inputs must be."},
    {"cut", py_cut, METH_VARARGS, "cut(residues, primes, inverse of the first modulo the second, drop, size, out)"},
    {"restore", py_restore, METH_VARARGS,
     "restore(data, primes, drop, size, out) -> bool: tell whether all numbers were below their modulus."},
    {"centred", py_centred, METH_VARARGS, "centred(octets, primes, bits, out)"},
    {NULL, NULL, 0, NULL},
};

static PyModuleDef_Slot slots[] = {{0, NULL}};

static struct PyModuleDef module = {
    PyModuleDef_HEAD_INIT, "deepreduce.private.homomorphic._kernel", "Arithmetic modulo the primes of a ciphertext.", 0, methods, slots,
    NULL, NULL, NULL,
};

PyMODINIT_FUNC PyInit__kernel(void) { return PyModuleDef_Init(&module); }
