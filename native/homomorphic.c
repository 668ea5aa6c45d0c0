/* deepreduce.private.homomorphic._kernel: arithmetic modulo the primes of a ciphertext, beside SEAL's.
 *
 *   sums       what a server adds up for its answers: ciphertexts times polynomials of weights (sums.h)
 *   spread     ciphertexts in coefficients, as `taps` reads them (taps.h)
 *   taps       the same sums for weights that stand alone: of several images
 *   powers     of roots of unity, which a transform needs
 *   transform  polynomials to their values and back (transform.h)
 *   add        residues
 *   products   of polynomials with one, value by value, by Montgomery's reduction: divided by 2^64
 *   ternary    random octets as numbers -1, 0 and 1
 *   binomial   random octets as noise: of 21 coins those that fell heads, less those of 21 others
 *   centred    random octets as numbers around 0
 *   scaled     messages modulo 2^k, as multiples of q / 2^k
 *   switched   ciphertexts without their last prime, by which they are divided
 *   rounded    the way back from `scaled`, for numbers near such a multiple
 *   cut        numbers modulo the product of one or two primes, rounded to their high bits, as bytes
 *   restore    the way back, with the bound that a stranger's numbers must keep
 *
 * All give the least residues, as SEAL does, and lay them out like SEAL: prime by prime, [..., primes, degree].
 *
 * Functions from buffers to buffers. Every size is checked here, against the buffers themselves, before memory is touched. The
 * GIL is released while the work runs: no other thread may write into the buffers then.
 */
#define PY_SSIZE_T_CLEAN
#define Py_LIMITED_API 0x030B0000
#include <Python.h>

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#if defined(__SIZEOF_INT128__) && defined(__LP64__) && !defined(_WIN32) && __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
#define DR_KERNEL 1
#else
#define DR_KERNEL 0
#endif

#define MOST_DEGREE 65536
#define MOST_PRIMES 16
#define MOST_RING_BITS 59
#define MOST_CENTRED_BITS 192
#define COINS 21
#define TRITS 5 /* in an octet: 3^5 = 243 of its 256 values */

#if DR_KERNEL
#include "sums.h"
#include "taps.h"
#include "transform.h"

/* A number of up to eight octets, little endian. What lies behind it, up to `end`, may be read. */
static inline uint64_t load_word(const uint8_t *from, size_t size, const uint8_t *end) {
    uint64_t word = 0;
    if ((size_t)(end - from) >= 8) {
        memcpy(&word, from, 8);
        return size < 8 ? word & (((uint64_t)1 << 8 * size) - 1) : word;
    }
    for (size_t i = 0; i < size; i++) {
        word |= (uint64_t)from[i] << 8 * i;
    }
    return word;
}

static inline Wide load_wide(const uint8_t *from, size_t size, const uint8_t *end) {
    return size > 8 ? load_word(from, 8, end) | (Wide)load_word(from + 8, size - 8, end) << 64 : load_word(from, size, end);
}

/* A number of up to sixteen octets. What lies behind it, up to `end`, is overwritten, and must be written later. */
static inline void store_wide(uint8_t *to, Wide number, size_t size, const uint8_t *end) {
    if ((size_t)(end - to) >= 16) {
        memcpy(to, &number, 16);
        return;
    }
    for (size_t i = 0; i < size; i++) {
        to[i] = (uint8_t)(number >> 8 * i);
    }
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
        store_wide(out + i * size, number, size, out + count * size);
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
        const Wide high = load_wide(data + i * size, size, data + count * size), number = high << drop;
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
    const uint64_t top = bits % 64 ? ((uint64_t)1 << bits % 64) - 1 : ~(uint64_t)0;
    for (size_t k = 0; k < primes; k++) {
        const Prime prime = prime_of(moduli[k]);
        Factor powers[MOST_CENTRED_BITS / 64]; /* of 2^64 */
        uint64_t half = 1, power = 1;
        for (size_t bit = 1; bit < bits; bit++) {
            half = 2 * half % prime.p;
        }
        for (size_t w = 0; w < words; w++) {
            powers[w] = factor_of(power, prime.p);
            power = remainder_of(&prime, 0, power);
        }
        for (size_t i = 0; i < count; i++) {
            uint64_t rest = 0;
            for (size_t w = 0; w < words; w++) {
                const size_t left = size - 8 * w;
                const uint64_t word = load_word(octets + i * size + 8 * w, left < 8 ? left : 8, octets + count * size);
                rest = less(rest + times(powers[w], w + 1 == words ? word & top : word, prime.p), 2 * prime.p);
            }
            out[k * count + i] = subtract(&prime, less(rest, prime.p), half);
        }
    }
}

/* to [lines, primes, degree] the residues of `from` */
static void add_residues(uint64_t *to, const uint64_t *from, size_t lines, const uint64_t *moduli, size_t primes, size_t degree) {
    for (size_t line = 0; line < lines * primes; line++) {
        const uint64_t p = moduli[line % primes];
        for (size_t i = line * degree; i < (line + 1) * degree; i++) {
            to[i] = less(to[i] + from[i], p);
        }
    }
}

/* Octets to out [primes, degree], uniform on -1, 0 and 1: octets from 243 on are left out. Tell whether there were enough. */
static int ternary(const uint8_t *octets, size_t available, const uint64_t *moduli, size_t primes, uint64_t *out, size_t degree) {
    size_t done = 0;
    for (size_t next = 0; next < available && done < degree; next++) {
        unsigned octet = octets[next];
        if (octet >= 243) {
            continue;
        }
        for (size_t trit = 0; trit < TRITS && done < degree; trit++, done++, octet /= 3) {
            for (size_t k = 0; k < primes; k++) {
                out[k * degree + done] = less(octet % 3 + moduli[k] - 1, moduli[k]);
            }
        }
    }
    return done == degree;
}

/* The number of ones in the low and in the high half of a word, each in its half. */
static inline uint64_t ones(uint64_t x) {
    x -= x >> 1 & 0x5555555555555555;
    x = (x & 0x3333333333333333) + (x >> 2 & 0x3333333333333333);
    x = (x + (x >> 4)) & 0x0f0f0f0f0f0f0f0f;
    x += x >> 8;
    return (x + (x >> 16)) & 0x000000ff000000ff;
}

/* Octets [degree, 8] to out [primes, degree]: ones in the low 21 bits, less ones in the 21 above. */
static void binomial(const uint8_t *octets, const uint64_t *moduli, size_t primes, uint64_t *out, size_t degree) {
    const uint64_t coins = ((uint64_t)1 << COINS) - 1;
    for (size_t k = 0; k < primes; k++) {
        for (size_t i = 0; i < degree; i++) {
            uint64_t bits;
            memcpy(&bits, octets + 8 * i, 8);
            const uint64_t heads = ones((bits & coins) | (bits >> COINS & coins) << 32);
            out[k * degree + i] = less((heads & 0xff) + moduli[k] - (heads >> 32), moduli[k]);
        }
    }
}

/* Products of words [lines, primes, degree] with one polynomial [primes, degree], divided by 2^64 (Montgomery). */
static void products(const uint64_t *words, const uint64_t *polynomial, size_t lines, const uint64_t *moduli, size_t primes, uint64_t *out,
                     size_t degree) {
    for (size_t line = 0; line < lines * primes; line++, words += degree, out += degree) {
        const Prime prime = prime_of(moduli[line % primes]);
        const uint64_t *others = polynomial + line % primes * degree;
        for (size_t i = 0; i < degree; i++) {
            const Wide product = (Wide)words[i] * others[i];
            out[i] = reduce(&prime, (uint64_t)product, (uint64_t)(product >> 64));
        }
    }
}

/* Messages m to out [primes, degree]: q m / 2^bits, rounded, with whole = floor(q / 2^bits) modulo the primes and rest = q mod
 * 2^bits. */
static void scaled(const uint64_t *messages, const uint64_t *whole, uint64_t rest, size_t bits, const uint64_t *moduli, size_t primes,
                   uint64_t *out, size_t degree) {
    for (size_t k = 0; k < primes; k++) {
        const uint64_t p = moduli[k];
        const Factor one = factor_of(1, p), times_whole = factor_of(whole[k], p);
        for (size_t i = 0; i < degree; i++) {
            const Wide rounded = ((Wide)messages[i] * rest + ((uint64_t)1 << (bits - 1))) >> bits;
            out[k * degree + i] = less(less(times(times_whole, messages[i], p) + times(one, (uint64_t)rounded, p), 2 * p), p);
        }
    }
}

/* words [lines, primes, degree] to out [lines, primes - 1, degree]: divided by the last prime, rounded; with its inverses. */
static void switched(const uint64_t *words, size_t lines, const uint64_t *moduli, const uint64_t *inverses, size_t primes, uint64_t *out,
                     size_t degree) {
    const uint64_t last = moduli[primes - 1], half = last >> 1;
    for (size_t line = 0; line < lines; line++, words += primes * degree) {
        const uint64_t *dropped = words + (primes - 1) * degree;
        for (size_t k = 0; k + 1 < primes; k++) {
            const Prime prime = prime_of(moduli[k]);
            const Factor inverse = factor_of(inverses[k], prime.p);
            const uint64_t shift = remainder_of(&prime, half, 0);
            for (size_t i = 0; i < degree; i++) {
                const uint64_t rest = remainder_of(&prime, less(dropped[i] + half, last), 0);
                const uint64_t whole = subtract(&prime, less(words[k * degree + i] + shift, prime.p), rest);
                *out++ = less(times(inverse, whole, prime.p), prime.p);
            }
        }
    }
}

/* words [primes, degree] to out [degree]: x of such residues, 2^bits x / q, rounded, modulo 2^bits; with the inverses of the
 * other primes' product. x / q is, but for an integer, the sum of what x times that inverse makes of each prime. Of each summand
 * 64 bits after the point are taken, so the sum is too small by primes / 2^64 at most. */
static void rounded(const uint64_t *words, const uint64_t *inverses, size_t bits, const uint64_t *moduli, size_t primes, uint64_t *out,
                    size_t degree) {
    memset(out, 0, degree * sizeof *out);
    for (size_t k = 0; k < primes; k++, words += degree) {
        const uint64_t p = moduli[k];
        const Factor inverse = factor_of(inverses[k], p);
        size_t width = 0;
        while (p >> width) {
            width++;
        }
        const uint64_t reciprocal = (uint64_t)(((Wide)1 << (63 + width)) / p);
        for (size_t i = 0; i < degree; i++) {
            const uint64_t x = less(times(inverse, words[i], p), p);
            const uint64_t guess = (uint64_t)((Wide)x * reciprocal >> (width - 1)); /* of 2^64 x / p, up to two less */
            const uint64_t rest = 0 - guess * p;
            out[i] += guess + (rest >= p) + (rest >= 2 * p);
        }
    }
    for (size_t i = 0; i < degree; i++) {
        out[i] = (out[i] + ((uint64_t)1 << (63 - bits))) >> (64 - bits);
    }
}

/* Do words of this size lie where they can be read? */
static int is_aligned(const Py_buffer *buffer, size_t size) { return (uintptr_t)buffer->buf % size == 0; }

/* Do two buffers have no octet in common? What was checked in one must not change while the other is written. */
static int are_apart(const Py_buffer *one, const Py_buffer *other) {
    const uintptr_t a = (uintptr_t)one->buf, b = (uintptr_t)other->buf;
    return a + (size_t)one->len <= b || b + (size_t)other->len <= a;
}

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

/* How many lines of words, [lines, primes, degree], a buffer holds; 0 if it is none. */
static size_t lines_in(const Py_buffer *buffer, size_t primes, Py_ssize_t degree) {
    if (!primes || degree < 1 || degree > MOST_DEGREE || !is_aligned(buffer, 8) || (size_t)buffer->len % (8 * primes * (size_t)degree)) {
        return 0;
    }
    return (size_t)buffer->len / (8 * primes * (size_t)degree);
}

/* Does a buffer hold a residue of each modulus? */
static int holds_residues(const Py_buffer *buffer, const Py_buffer *moduli, size_t primes) {
    const uint64_t *residues = buffer->buf, *bounds = moduli->buf;
    int fits = is_aligned(buffer, 8) && (size_t)buffer->len == 8 * primes;
    for (size_t k = 0; fits && k < primes; k++) {
        fits = residues[k] < bounds[k];
    }
    return fits;
}
#endif

/* Release the buffers of a call and return what it found, or raise if they did not fit. */
static PyObject *leave(Py_buffer *buffers, size_t count, int fits, PyObject *found) {
    for (size_t i = 0; i < count; i++) {
        PyBuffer_Release(&buffers[i]);
    }
    if (!fits) {
        PyErr_SetString(PyExc_ValueError,
                        "sizes are in range, fit together, and match the buffers, which are aligned; primes are odd and have at most 60 bits");
        return NULL;
    }
    return Py_NewRef(found);
}

/* cut(residues, primes, inverse of the first modulo the second, drop, size, out) */
static PyObject *py_cut(PyObject *self, PyObject *args) {
    Py_buffer b[3], *residues = b, *moduli = b + 1, *out = b + 2;
    unsigned long long inverse;
    Py_ssize_t drop, size;
    int fits = 0;
    (void)self;
    if (!PyArg_ParseTuple(args, "y*y*Knnw*", residues, moduli, &inverse, &drop, &size, out)) {
        return NULL;
    }
#if DR_KERNEL
    const size_t primes = primes_in(moduli, 2);
    if (primes && is_aligned(residues, 8) && (size_t)residues->len % (8 * primes) == 0 && drop >= 0 && drop < 2 * MOST_BITS && size >= 1 &&
        size <= 16) {
        const size_t count = (size_t)residues->len / (8 * primes);
        fits = (size_t)out->len == count * (size_t)size && (primes == 1 || inverse < ((const uint64_t *)moduli->buf)[1]);
        if (fits) {
            Py_BEGIN_ALLOW_THREADS
            cut(residues->buf, moduli->buf, primes, inverse, (size_t)drop, (size_t)size, out->buf, count);
            Py_END_ALLOW_THREADS
        }
    }
#endif
    return leave(b, 3, fits, Py_None);
}

/* restore(data, primes, drop, size, out) -> whether all numbers were below their modulus */
static PyObject *py_restore(PyObject *self, PyObject *args) {
    Py_buffer b[3], *data = b, *moduli = b + 1, *out = b + 2;
    Py_ssize_t drop, size;
    int fits = 0, below = 0;
    (void)self;
    if (!PyArg_ParseTuple(args, "y*y*nnw*", data, moduli, &drop, &size, out)) {
        return NULL;
    }
#if DR_KERNEL
    const size_t primes = primes_in(moduli, 2);
    if (primes && is_aligned(out, 8) && drop >= 0 && drop < 2 * MOST_BITS && size >= 1 && size <= 16 && data->len % size == 0) {
        const size_t count = (size_t)data->len / (size_t)size;
        fits = (size_t)out->len % (8 * primes) == 0 && (size_t)out->len / (8 * primes) == count;
        if (fits) {
            Py_BEGIN_ALLOW_THREADS
            below = restore(data->buf, moduli->buf, primes, (size_t)drop, (size_t)size, out->buf, count);
            Py_END_ALLOW_THREADS
        }
    }
#endif
    return leave(b, 3, fits, below ? Py_True : Py_False);
}

/* centred(octets, primes, bits, out) */
static PyObject *py_centred(PyObject *self, PyObject *args) {
    Py_buffer b[3], *octets = b, *moduli = b + 1, *out = b + 2;
    Py_ssize_t bits;
    int fits = 0;
    (void)self;
    if (!PyArg_ParseTuple(args, "y*y*nw*", octets, moduli, &bits, out)) {
        return NULL;
    }
#if DR_KERNEL
    const size_t primes = primes_in(moduli, MOST_PRIMES);
    if (primes && is_aligned(out, 8) && bits >= 1 && bits <= MOST_CENTRED_BITS) {
        const size_t size = ((size_t)bits + 7) / 8, count = (size_t)octets->len / size;
        fits = (size_t)octets->len % size == 0 && (size_t)out->len % (8 * primes) == 0 && (size_t)out->len / (8 * primes) == count;
        if (fits) {
            Py_BEGIN_ALLOW_THREADS
            centred(octets->buf, moduli->buf, primes, (size_t)bits, size, out->buf, count);
            Py_END_ALLOW_THREADS
        }
    }
#endif
    return leave(b, 3, fits, Py_None);
}

/* sums(inputs, weights, terms, pairs, primes, out, degree) -> whether all weights were residues; the inputs must be */
static PyObject *py_sums(PyObject *self, PyObject *args) {
    Py_buffer b[6], *inputs = b, *weights = b + 1, *terms = b + 2, *pairs = b + 3, *moduli = b + 4, *out = b + 5;
    Py_ssize_t degree;
    int fits = 0, right = 0;
    (void)self;
    if (!PyArg_ParseTuple(args, "y*y*y*y*y*w*n", inputs, weights, terms, pairs, moduli, out, &degree)) {
        return NULL;
    }
#if DR_KERNEL
    const size_t primes = primes_in(moduli, MOST_PRIMES), count = (size_t)terms->len / 4, all = (size_t)pairs->len / 8;
    if (count && lines_in(out, primes, degree) == 2 * count && is_aligned(inputs, 8) && is_aligned(weights, 8) && is_aligned(terms, 4) &&
        terms->len % 4 == 0 && is_aligned(pairs, 4) && pairs->len % 8 == 0) {
        const Sums s = {(size_t)degree, primes, count, inputs->buf, weights->buf, terms->buf, pairs->buf, moduli->buf, out->buf};
        const size_t polynomial = 8 * primes * (size_t)degree;
        size_t left = all;
        fits = (size_t)inputs->len % (2 * polynomial) == 0 && (size_t)weights->len % polynomial == 0 && are_apart(terms, out) &&
               are_apart(pairs, out) && are_apart(moduli, out);
        for (size_t sum = 0; fits && sum < count; sum++) {
            fits = s.terms[sum] <= left;
            left -= fits ? s.terms[sum] : 0;
        }
        fits = fits && left == 0;
        for (size_t t = 0; fits && t < all; t++) {
            fits = s.pairs[2 * t] < (size_t)inputs->len / (2 * polynomial) && s.pairs[2 * t + 1] < (size_t)weights->len / polynomial;
        }
        if (fits) {
            Py_BEGIN_ALLOW_THREADS
            right = sums(&s);
            Py_END_ALLOW_THREADS
        }
    }
#endif
    return leave(b, 6, fits, right ? Py_True : Py_False);
}

/* spread(words, primes, degree, margin, out): out [lines, primes, margin + degree] */
static PyObject *py_spread(PyObject *self, PyObject *args) {
    Py_buffer b[3], *words = b, *moduli = b + 1, *out = b + 2;
    Py_ssize_t degree, margin;
    int fits = 0;
    (void)self;
    if (!PyArg_ParseTuple(args, "y*y*nnw*", words, moduli, &degree, &margin, out)) {
        return NULL;
    }
#if DR_KERNEL
    const size_t primes = primes_in(moduli, MOST_PRIMES), lines = lines_in(words, primes, degree);
    fits = lines && margin >= 0 && margin <= degree && lines_in(out, primes, degree + margin) == lines;
    if (fits) {
        Py_BEGIN_ALLOW_THREADS
        spread(words->buf, lines * primes, moduli->buf, primes, (size_t)degree, (size_t)margin, out->buf);
        Py_END_ALLOW_THREADS
    }
#endif
    return leave(b, 3, fits, Py_None);
}

/* taps(inputs, margin, offsets, weights, primes, out, degree): see `Taps`; adds to `out`, which holds residues */
static PyObject *py_taps(PyObject *self, PyObject *args) {
    Py_buffer b[5], *inputs = b, *offsets = b + 1, *weights = b + 2, *moduli = b + 3, *out = b + 4;
    Py_ssize_t degree, margin;
    int fits = 0;
    (void)self;
    if (!PyArg_ParseTuple(args, "y*ny*y*y*w*n", inputs, &margin, offsets, weights, moduli, out, &degree)) {
        return NULL;
    }
#if DR_KERNEL
    const size_t primes = primes_in(moduli, MOST_PRIMES), sums = lines_in(out, primes, degree) / 2;
    if (sums && lines_in(out, primes, degree) == 2 * sums && sums % OUTPUTS == 0 && margin >= 0 && margin <= degree && is_aligned(offsets, 8) &&
        offsets->len % 8 == 0 && is_aligned(weights, 4)) {
        const Taps t = {(size_t)degree, primes, sums, (size_t)offsets->len / 8, (size_t)margin, inputs->buf, offsets->buf, weights->buf,
                        moduli->buf, out->buf};
        const size_t all = lines_in(inputs, primes, degree + margin), ciphertext = 2 * primes * (size_t)(degree + margin);
        fits = all && all % 2 == 0 && are_apart(offsets, out) && are_apart(weights, out) && are_apart(moduli, out) &&
               (size_t)weights->len % (4 * sums) == 0 && (size_t)weights->len / (4 * sums) == t.terms;
        for (size_t k = 0; fits && k < t.terms; k++) { /* in the first line of a ciphertext, at most `margin` behind its beginning */
            fits = t.offsets[k] / ciphertext < all / 2 && t.offsets[k] % ciphertext <= t.margin;
        }
        if (fits) {
            Py_BEGIN_ALLOW_THREADS
            taps(&t);
            Py_END_ALLOW_THREADS
        }
    }
#endif
    return leave(b, 5, fits, Py_None);
}

/* powers(primes, roots, out, degree): out [primes, 2, 2, degree] */
static PyObject *py_powers(PyObject *self, PyObject *args) {
    Py_buffer b[3], *moduli = b, *roots = b + 1, *out = b + 2;
    Py_ssize_t degree;
    int fits = 0;
    (void)self;
    if (!PyArg_ParseTuple(args, "y*y*w*n", moduli, roots, out, &degree)) {
        return NULL;
    }
#if DR_KERNEL
    const size_t primes = primes_in(moduli, MOST_PRIMES);
    fits = lines_in(out, primes, degree) == 4 && (degree & (degree - 1)) == 0 && holds_residues(roots, moduli, primes);
    if (fits) {
        Py_BEGIN_ALLOW_THREADS
        for (size_t k = 0; k < primes; k++) {
            powers_of(((const uint64_t *)roots->buf)[k], ((const uint64_t *)moduli->buf)[k], (size_t)degree,
                      (uint64_t *)out->buf + k * 4 * (size_t)degree);
        }
        Py_END_ALLOW_THREADS
    }
#endif
    return leave(b, 3, fits, Py_None);
}

/* transform(words, powers, primes, degree, back): in place */
static PyObject *py_transform(PyObject *self, PyObject *args) {
    Py_buffer b[3], *words = b, *powers = b + 1, *moduli = b + 2;
    Py_ssize_t degree;
    int back, fits = 0;
    (void)self;
    if (!PyArg_ParseTuple(args, "w*y*y*np", words, powers, moduli, &degree, &back)) {
        return NULL;
    }
#if DR_KERNEL
    const size_t primes = primes_in(moduli, MOST_PRIMES), lines = lines_in(words, primes, degree);
    fits = lines && lines_in(powers, primes, degree) == 4 && (degree & (degree - 1)) == 0;
    if (fits) {
        Py_BEGIN_ALLOW_THREADS
        for (size_t line = 0; line < lines * primes; line++) {
            const uint64_t *own = (const uint64_t *)powers->buf + line % primes * 4 * (size_t)degree;
            uint64_t *x = (uint64_t *)words->buf + line * (size_t)degree, p = ((const uint64_t *)moduli->buf)[line % primes];
            if (back) {
                transform_back(x, (size_t)degree, p, own);
            } else {
                transform(x, (size_t)degree, p, own);
            }
        }
        Py_END_ALLOW_THREADS
    }
#endif
    return leave(b, 3, fits, Py_None);
}

/* add(words, others, primes, degree): to the first, in place */
static PyObject *py_add(PyObject *self, PyObject *args) {
    Py_buffer b[3], *words = b, *others = b + 1, *moduli = b + 2;
    Py_ssize_t degree;
    int fits = 0;
    (void)self;
    if (!PyArg_ParseTuple(args, "w*y*y*n", words, others, moduli, &degree)) {
        return NULL;
    }
#if DR_KERNEL
    const size_t primes = primes_in(moduli, MOST_PRIMES), lines = lines_in(words, primes, degree);
    fits = lines && words->len == others->len && is_aligned(others, 8);
    if (fits) {
        Py_BEGIN_ALLOW_THREADS
        add_residues(words->buf, others->buf, lines, moduli->buf, primes, (size_t)degree);
        Py_END_ALLOW_THREADS
    }
#endif
    return leave(b, 3, fits, Py_None);
}

/* ternary(octets, primes, out, degree) -> whether there were enough octets */
static PyObject *py_ternary(PyObject *self, PyObject *args) {
    Py_buffer b[3], *octets = b, *moduli = b + 1, *out = b + 2;
    Py_ssize_t degree;
    int fits = 0, enough = 0;
    (void)self;
    if (!PyArg_ParseTuple(args, "y*y*w*n", octets, moduli, out, &degree)) {
        return NULL;
    }
#if DR_KERNEL
    const size_t primes = primes_in(moduli, MOST_PRIMES);
    fits = lines_in(out, primes, degree) == 1;
    if (fits) {
        Py_BEGIN_ALLOW_THREADS
        enough = ternary(octets->buf, (size_t)octets->len, moduli->buf, primes, out->buf, (size_t)degree);
        Py_END_ALLOW_THREADS
    }
#endif
    return leave(b, 3, fits, enough ? Py_True : Py_False);
}

/* binomial(octets, primes, out, degree) */
static PyObject *py_binomial(PyObject *self, PyObject *args) {
    Py_buffer b[3], *octets = b, *moduli = b + 1, *out = b + 2;
    Py_ssize_t degree;
    int fits = 0;
    (void)self;
    if (!PyArg_ParseTuple(args, "y*y*w*n", octets, moduli, out, &degree)) {
        return NULL;
    }
#if DR_KERNEL
    const size_t primes = primes_in(moduli, MOST_PRIMES);
    fits = lines_in(out, primes, degree) == 1 && octets->len == 8 * degree;
    for (size_t k = 0; fits && k < primes; k++) {
        fits = ((const uint64_t *)moduli->buf)[k] > COINS;
    }
    if (fits) {
        Py_BEGIN_ALLOW_THREADS
        binomial(octets->buf, moduli->buf, primes, out->buf, (size_t)degree);
        Py_END_ALLOW_THREADS
    }
#endif
    return leave(b, 3, fits, Py_None);
}

/* scaled(messages, whole, rest, bits, primes, out, degree) */
static PyObject *py_scaled(PyObject *self, PyObject *args) {
    Py_buffer b[4], *messages = b, *whole = b + 1, *moduli = b + 2, *out = b + 3;
    unsigned long long rest;
    Py_ssize_t bits, degree;
    int fits = 0;
    (void)self;
    if (!PyArg_ParseTuple(args, "y*y*Kny*w*n", messages, whole, &rest, &bits, moduli, out, &degree)) {
        return NULL;
    }
#if DR_KERNEL
    const size_t primes = primes_in(moduli, MOST_PRIMES);
    fits = lines_in(out, primes, degree) == 1 && lines_in(messages, 1, degree) == 1 && holds_residues(whole, moduli, primes) && bits >= 1 &&
           bits <= MOST_RING_BITS && rest >> bits == 0;
    if (fits) {
        Py_BEGIN_ALLOW_THREADS
        scaled(messages->buf, whole->buf, rest, (size_t)bits, moduli->buf, primes, out->buf, (size_t)degree);
        Py_END_ALLOW_THREADS
    }
#endif
    return leave(b, 4, fits, Py_None);
}

/* products(words, polynomial, primes, out, degree) */
static PyObject *py_products(PyObject *self, PyObject *args) {
    Py_buffer b[4], *words = b, *polynomial = b + 1, *moduli = b + 2, *out = b + 3;
    Py_ssize_t degree;
    int fits = 0;
    (void)self;
    if (!PyArg_ParseTuple(args, "y*y*y*w*n", words, polynomial, moduli, out, &degree)) {
        return NULL;
    }
#if DR_KERNEL
    const size_t primes = primes_in(moduli, MOST_PRIMES), lines = lines_in(words, primes, degree);
    fits = lines && lines_in(polynomial, primes, degree) == 1 && out->len == words->len && is_aligned(out, 8);
    if (fits) {
        Py_BEGIN_ALLOW_THREADS
        products(words->buf, polynomial->buf, lines, moduli->buf, primes, out->buf, (size_t)degree);
        Py_END_ALLOW_THREADS
    }
#endif
    return leave(b, 4, fits, Py_None);
}

/* switched(words, inverses of the last prime modulo the others, primes, out, degree) */
static PyObject *py_switched(PyObject *self, PyObject *args) {
    Py_buffer b[4], *words = b, *inverses = b + 1, *moduli = b + 2, *out = b + 3;
    Py_ssize_t degree;
    int fits = 0;
    (void)self;
    if (!PyArg_ParseTuple(args, "y*y*y*w*n", words, inverses, moduli, out, &degree)) {
        return NULL;
    }
#if DR_KERNEL
    const size_t primes = primes_in(moduli, MOST_PRIMES), lines = lines_in(words, primes, degree);
    fits = primes > 1 && lines && lines_in(out, primes - 1, degree) == lines && holds_residues(inverses, moduli, primes - 1);
    if (fits) {
        Py_BEGIN_ALLOW_THREADS
        switched(words->buf, lines, moduli->buf, inverses->buf, primes, out->buf, (size_t)degree);
        Py_END_ALLOW_THREADS
    }
#endif
    return leave(b, 4, fits, Py_None);
}

/* rounded(words, inverses of the product of the other primes, bits, primes, out, degree) */
static PyObject *py_rounded(PyObject *self, PyObject *args) {
    Py_buffer b[4], *words = b, *inverses = b + 1, *moduli = b + 2, *out = b + 3;
    Py_ssize_t bits, degree;
    int fits = 0;
    (void)self;
    if (!PyArg_ParseTuple(args, "y*y*ny*w*n", words, inverses, &bits, moduli, out, &degree)) {
        return NULL;
    }
#if DR_KERNEL
    const size_t primes = primes_in(moduli, MOST_PRIMES);
    fits = lines_in(words, primes, degree) == 1 && lines_in(out, 1, degree) == 1 && holds_residues(inverses, moduli, primes) && bits >= 1 &&
           bits <= MOST_RING_BITS;
    if (fits) {
        Py_BEGIN_ALLOW_THREADS
        rounded(words->buf, inverses->buf, (size_t)bits, moduli->buf, primes, out->buf, (size_t)degree);
        Py_END_ALLOW_THREADS
    }
#endif
    return leave(b, 4, fits, Py_None);
}

/* vectors(most) -> how many words of 64 bits are computed side by side from now on, at the widest */
static PyObject *py_vectors(PyObject *self, PyObject *args) {
    Py_ssize_t most;
    (void)self;
    if (!PyArg_ParseTuple(args, "n", &most)) {
        return NULL;
    }
#if DR_KERNEL
    return PyLong_FromSize_t(use_vectors(most < 1 ? 1 : (size_t)most));
#else
    return PyLong_FromLong(1);
#endif
}

static PyObject *py_supported(PyObject *self, PyObject *unused) {
    (void)self;
    (void)unused;
    return PyBool_FromLong(DR_KERNEL);
}

static PyMethodDef methods[] = {
    {"supported", py_supported, METH_NOARGS, "supported() -> bool: whether this kernel runs here."},
    {"vectors", py_vectors, METH_VARARGS, "vectors(most) -> int: how many words are computed side by side from now on, at the widest; for tests."},
    {"sums", py_sums, METH_VARARGS,
     "sums(inputs, weights, terms, pairs, primes, out, degree) -> bool: write the sums of products; tell whether all weights were\n"
     "residues. The inputs must be."},
    {"spread", py_spread, METH_VARARGS, "spread(words, primes, degree, margin, out): ciphertexts in coefficients, as `taps` reads them."},
    {"taps", py_taps, METH_VARARGS, "taps(inputs, margin, offsets, weights, primes, out, degree): add sums of inputs times single weights."},
    {"powers", py_powers, METH_VARARGS, "powers(primes, roots, out, degree)"},
    {"transform", py_transform, METH_VARARGS, "transform(words, powers, primes, degree, back): in place."},
    {"add", py_add, METH_VARARGS, "add(words, others, primes, degree): to the first, in place."},
    {"products", py_products, METH_VARARGS, "products(words, polynomial, primes, out, degree): divided by 2^64."},
    {"ternary", py_ternary, METH_VARARGS, "ternary(octets, primes, out, degree) -> bool: tell whether there were enough octets."},
    {"binomial", py_binomial, METH_VARARGS, "binomial(octets, primes, out, degree)"},
    {"centred", py_centred, METH_VARARGS, "centred(octets, primes, bits, out)"},
    {"scaled", py_scaled, METH_VARARGS, "scaled(messages, floor(q / 2^k) modulo the primes, q mod 2^k, k, primes, out, degree)"},
    {"switched", py_switched, METH_VARARGS, "switched(words, inverses of the last prime, primes, out, degree)"},
    {"rounded", py_rounded, METH_VARARGS, "rounded(words, inverses of the product of the other primes, k, primes, out, degree)"},
    {"cut", py_cut, METH_VARARGS, "cut(residues, primes, inverse of the first modulo the second, drop, size, out)"},
    {"restore", py_restore, METH_VARARGS,
     "restore(data, primes, drop, size, out) -> bool: tell whether all numbers were below their modulus."},
    {NULL, NULL, 0, NULL},
};

static int load(PyObject *module) {
    (void)module;
#if DR_KERNEL
    use_vectors(SIZE_MAX);
#endif
    return 0;
}

static PyModuleDef_Slot slots[] = {{Py_mod_exec, load}, {0, NULL}};

static struct PyModuleDef module = {
    PyModuleDef_HEAD_INIT, "deepreduce.private.homomorphic._kernel", "Arithmetic modulo the primes of a ciphertext.", 0, methods, slots,
    NULL, NULL, NULL,
};

PyMODINIT_FUNC PyInit__kernel(void) { return PyModuleDef_Init(&module); }
