"""One file that holds everything a host needs, for hosts with no route to anywhere: made here, checked before use.

`contents` says what belongs in it, `make` collects it, `repository` indexes and signs it, `verify` judges a file
before anything of it is used. Only the controller has this package.
"""
