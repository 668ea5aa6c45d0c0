"""A client's ciphertexts, under its secret key, and a server's, which blind a product; and the way back.

There are two ways for each. "kernel" draws and computes with the compiled `native/homomorphic.c`; "seal" has SEAL
do it. Messages and their bounds are the same. What differs is how the noise of a server's ciphertext comes about
(`noise.py`): SEAL encrypts modulo q P and divides by P, the kernel encrypts modulo q, and the flood is its e_0.
"""

from __future__ import annotations

import os

import numpy as np

from ...errors import problem
from ._backends import Name, choose
from .arithmetic import arithmetic
from .draws import SEED_BYTES, draw_share, expand, flood
from .errors import MessageError
from .packing import Words
from .residues import add_modulo
from .scheme import Form, Keys, scheme
from .wire import PublicKey


class Encryptor:
    """Encrypts a client's numbers under its secret key.

    Args:
        keys: the client's.
        backend: which way; the default one if none is named.

    Raises:
        UsageError: the way does not run here.
    """

    def __init__(self, keys: Keys, *, backend: Name | None = None) -> None:
        self.parameters, self._backend = keys.parameters, choose(backend)
        context = scheme(keys.parameters)
        if self._backend == "seal":
            self._seal, self._secret = context.encryptor(keys), context.secret_weights(keys)
        else:
            secret = context.key_words(keys.secret)[0]
            primes = np.array(context.primes, np.uint64)[:, None]
            self._minus_secret = arithmetic(keys.parameters).lifted((primes - secret) * (secret != 0))

    def encrypt(self, values: Words) -> tuple[Words, bytes]:
        """Encrypt N ring elements, below 2^k, with fresh noise.

        Returns:
            NTT values of the first polynomial (prime, coefficient), and the seed of the second, see `draws.expand`.
        """
        seed = os.urandom(SEED_BYTES)
        expanded = expand(self.parameters, seed)
        if self._backend == "seal":
            return self._encrypt_with_seal(values, expanded), seed
        own = arithmetic(self.parameters)
        first = own.scaled(values)
        own.add(first, own.noise())
        own.transform(first)
        own.add(first, own.product(expanded, self._minus_secret))
        return first, seed

    def _encrypt_with_seal(self, values: Words, expanded: Words) -> Words:
        """SEAL draws (c_0, c_1); with S the secret key (c_0 + (c_1 - a) S, a) has the same message and noise."""
        context = scheme(self.parameters)
        drawn = context.evaluator.transform_to_ntt(self._seal.encrypt_symmetric(context.plaintext(values)))
        given = context.ciphertext(np.stack([np.zeros_like(expanded), expanded]), "transformed")
        rebased = context.words(context.evaluator.sub(drawn, given))
        both = context.ciphertext(np.stack([rebased[1], rebased[1]]), "transformed")
        product = context.words(context.evaluator.multiply_plain(both, self._secret))[0]
        return add_modulo(rebased[0], product, context.primes)


class Decryptor:
    """Decrypts answers with a client's secret key.

    Args:
        keys: the client's.
        backend: which way; the default one if none is named.

    Raises:
        UsageError: the way does not run here.
    """

    def __init__(self, keys: Keys, *, backend: Name | None = None) -> None:
        self.parameters, self._backend = keys.parameters, choose(backend)
        context = scheme(keys.parameters)
        if self._backend == "seal":
            self._seal = context.decryptor(keys)
        else:
            kept = context.key_words(keys.secret)[0, : len(context.answer_primes)]
            self._secret = arithmetic(keys.parameters).lifted(kept)

    def decrypt(self, words: Words) -> Words:
        """Return the N ring elements of an answer, given in coefficients (polynomial, prime, coefficient)."""
        if self._backend == "seal":
            context = scheme(self.parameters)
            return context.values(self._seal.decrypt(context.ciphertext(words, "answer")))
        own = arithmetic(self.parameters)
        second = words[1].copy()
        own.transform(second)
        phase = own.product(second, self._secret)
        own.transform_back(phase)
        own.add(phase, words[0])
        return own.rounded(phase)


class Blinder:
    """Blinds a server's products for the owner of a public key.

    Args:
        public_key: the client's.
        backend: which way; the default one if none is named.

    Raises:
        UsageError: the way does not run here.
    """

    def __init__(self, public_key: PublicKey, *, backend: Name | None = None) -> None:
        self.parameters, self._backend = public_key.parameters, choose(backend)
        context = scheme(self.parameters)
        if self._backend == "seal":
            self._seal = context.public_encryptor(public_key.words)
        else:
            self._public = arithmetic(self.parameters).lifted(context.key_words(public_key.words))

    def blind(self, product: Words | None, form: Form = "transformed") -> tuple[Words, Words]:
        """Return an encryption of a product minus a mask that reveals nothing else to the owner of the secret key.

        Args:
            product: what `multiply` or a `Gatherer` returned, or None for zero.
            form: of the product.

        Returns:
            A ciphertext in coefficients modulo all data primes, and the mask s: uniform on all N coefficients, fresh.

        Raises:
            MessageError: the public key is none, and SEAL refuses what it makes with it.
        """
        mask = draw_share(self.parameters, (self.parameters.degree,))
        negative = (np.uint64(0) - mask) & np.uint64((1 << self.parameters.ring_bits) - 1)
        if self._backend == "seal":
            return self._blind_with_seal(product, form, negative), mask
        own = arithmetic(self.parameters)
        secret = own.ternary()
        own.transform(secret)
        found = own.product(self._public, secret)
        if product is not None and form == "transformed":
            own.add(found, product)
        own.transform_back(found)
        if product is not None and form == "coefficients":
            own.add(found, product)
        own.add(found[0], own.scaled(negative))
        own.add(found[0], flood(self.parameters))
        own.add(found[1], own.noise())
        return found, mask

    def switch(self, words: Words) -> Words:
        """Return a ciphertext in coefficients modulo the primes that an answer keeps."""
        if self._backend != "seal":
            return arithmetic(self.parameters).switch(words)
        context = scheme(self.parameters)
        ciphertext = context.ciphertext(words, "coefficients")
        return context.words(context.evaluator.mod_switch_to(ciphertext, context.answer_level))

    def _blind_with_seal(self, product: Words | None, form: Form, negative: Words) -> Words:
        context, drawn = scheme(self.parameters), flood(self.parameters)
        flooding = context.ciphertext(np.stack([drawn, np.zeros_like(drawn)]), "coefficients")
        try:
            fresh = self._seal.encrypt(context.plaintext(negative))
            context.evaluator.add_inplace(fresh, flooding)
            if product is not None:
                own = context.ciphertext(product, form)
                if form == "transformed":
                    context.evaluator.transform_from_ntt_inplace(own)
                context.evaluator.add_inplace(fresh, own)
        except RuntimeError as error:  # a ciphertext that everybody can read
            raise MessageError(
                problem(
                    "a public key must be one that hides what is encrypted with it",
                    got=error,
                    remedy="drop the connection: the other party is broken or hostile",
                )
            ) from error
        return context.words(fresh)
